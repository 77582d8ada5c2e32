package android.graphics;

import java.nio.ByteBuffer;

/**
 * As Android's: getPixels throws for a hardware bitmap, which has to be copied first, and gives colors in sRGB. Where a
 * bitmap has colors of its own, it shows by inverted ones. copyPixelsToBuffer gives red, green, blue and alpha as they are.
 */
public final class Bitmap {
    public enum Config { ARGB_8888, RGB_565, HARDWARE }

    private final int[] argb;
    private final int width;
    private final Config config;
    private final boolean ownColors;

    public Bitmap(int[] argb, int width, Config config, boolean ownColors) {
        this.argb = argb;
        this.width = width;
        this.config = config;
        this.ownColors = ownColors;
    }

    public static Bitmap createBitmap(Bitmap source, int x, int y, int columns, int rows) {
        int[] part = new int[columns * rows];
        for (int row = 0; row < rows; ++row) {
            System.arraycopy(source.argb, (y + row) * source.width + x, part, row * columns, columns);
        }
        return new Bitmap(part, columns, source.config, source.ownColors);
    }

    public int getWidth() {
        return width;
    }

    public int getHeight() {
        return argb.length / width;
    }

    public int getByteCount() {
        return argb.length * (config == Config.RGB_565 ? 2 : 4);
    }

    public Config getConfig() {
        return config;
    }

    public boolean hasAlpha() {
        for (int pixel : argb) if (pixel >>> 24 != 255) return true;
        return false;
    }

    public void recycle() {}

    public Bitmap copy(Config config, boolean mutable) {
        return new Bitmap(argb.clone(), width, config, ownColors);
    }

    public void copyPixelsToBuffer(ByteBuffer buffer) {
        if (config != Config.ARGB_8888) throw new IllegalStateException("other than four bytes a pixel");
        for (int pixel : argb) {
            buffer.put((byte) (pixel >> 16)).put((byte) (pixel >> 8)).put((byte) pixel).put((byte) (pixel >> 24));
        }
    }

    public void getPixels(int[] pixels, int offset, int stride, int x, int y, int columns, int rows) {
        if (config == Config.HARDWARE) throw new IllegalStateException("unable to getPixels(), no access to hardware");
        for (int row = 0; row < rows; ++row) {
            for (int column = 0; column < columns; ++column) {
                int pixel = argb[(y + row) * width + x + column];
                pixels[offset + row * stride + column] = ownColors ? pixel ^ 0xffffff : pixel;
            }
        }
    }
}
