import CoreGraphics
import Foundation

extension RGBImage {
    /// The pixels of a decoded image as they are, without conversion of an RGB color space. Turn it upright first, as its EXIF orientation says: a UIImage
    /// keeps that apart from its `cgImage`.
    public init(_ image: CGImage) throws {
        let (height, width) = (image.height, image.width)
        var rgba = [UInt8](repeating: 0, count: 4 * height * width)
        let drawn = rgba.withUnsafeMutableBytes { buffer -> Bool in
            // Python's decoders do not convert colors either: a photograph in Display P3 keeps its values.
            let own = image.colorSpace.flatMap { $0.model == .rgb && $0.supportsOutput ? $0 : nil }
            guard
                let space = own ?? CGColorSpace(name: CGColorSpace.sRGB),
                let context = CGContext(
                    data: buffer.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
                    space: space, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            else { return false }
            context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
            return true
        }
        guard drawn else { throw EncoderError.image("no context for an image of \(height)x\(width)") }
        var pixels = [UInt8]()
        pixels.reserveCapacity(3 * height * width)
        for at in stride(from: 0, to: rgba.count, by: 4) { pixels.append(contentsOf: rgba[at..<(at + 3)]) }
        try self.init(pixels: pixels, height: height, width: width)
    }
}
