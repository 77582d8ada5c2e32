package android.content.res;

import java.io.Closeable;
import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.IOException;

public final class AssetFileDescriptor implements Closeable {
    private final FileInputStream stream;
    private final long offset;
    private final long length;

    AssetFileDescriptor(FileInputStream stream, long offset, long length) {
        this.stream = stream;
        this.offset = offset;
        this.length = length;
    }

    public FileDescriptor getFileDescriptor() {
        try {
            return stream.getFD();
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
    }

    public long getStartOffset() {
        return offset;
    }

    public long getDeclaredLength() {
        return length;
    }

    @Override
    public void close() throws IOException {
        stream.close();
    }
}
