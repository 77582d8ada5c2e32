package android.system;

/** As Android's, into properties instead of the environment, which a JVM cannot change. */
public final class Os {
    public static void setenv(String name, String value, boolean overwrite) {
        if (overwrite || System.getProperty("env." + name) == null) System.setProperty("env." + name, value);
    }
}
