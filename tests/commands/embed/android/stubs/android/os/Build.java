package android.os;

public final class Build {
    public static final class VERSION {
        public static final int SDK_INT = Integer.parseInt("36"); // not a constant expression, as on Android
    }
}
