// From image files and decoded images to pixels, as Python's decoders give them: turned upright, without conversion of an
// RGB color space (a photograph in Display P3 keeps its values), an alpha channel dropped. Gray images and palettes are
// converted to sRGB, which Python does not.

import CoreGraphics
import Foundation
import ImageIO

extension RGBImage {
    /// The first image of a file (JPEG, PNG, HEIC and others), turned as its EXIF orientation says.
    public init(decoding file: Data) throws {
        guard let source = CGImageSourceCreateWithData(file as CFData, nil),
            CGImageSourceGetStatusAtIndex(source, 0) == .statusComplete,  // else the rest of it would be blank
            let image = CGImageSourceCreateImageAtIndex(source, 0, nil)
        else { throw EncoderError.image("expected an image, found \(file.count) bytes that ImageIO cannot decode, or not whole") }
        let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [String: Any]
        // EXIF has 1 to 8; the initializer of an enumeration from C takes any number.
        let number = properties?[kCGImagePropertyOrientation as String] as? UInt32 ?? 1
        let known = (1...8).contains(number) ? CGImagePropertyOrientation(rawValue: number) : nil
        try self.init(image, orientation: known ?? .up)
    }

    /// A decoded image, turned upright from its orientation, which a `UIImage` keeps apart from its `cgImage`. The color of
    /// pixels that are not opaque is kept roughly, that of transparent ones not at all.
    public init(_ image: CGImage, orientation: CGImagePropertyOrientation = .up) throws {
        let (height, width) = (image.height, image.width)
        let opaque = [.none, .noneSkipFirst, .noneSkipLast].contains(image.alphaInfo)
        let alpha: CGImageAlphaInfo = opaque ? .noneSkipLast : .premultipliedLast
        var rgba = [UInt8](repeating: 0, count: 4 * height * width)
        let drawn = rgba.withUnsafeMutableBytes { buffer -> Bool in
            func context(_ space: CGColorSpace?) -> CGContext? {
                space.flatMap {
                    CGContext(
                        data: buffer.baseAddress, width: width, height: height, bitsPerComponent: 8,
                        bytesPerRow: 4 * width, space: $0, bitmapInfo: alpha.rawValue)
                }
            }
            let own = image.colorSpace.flatMap { $0.model == .rgb && $0.supportsOutput ? $0 : nil }
            // Extended color spaces are RGB too, but have no context of 8 bits.
            guard let context = context(own) ?? context(CGColorSpace(name: CGColorSpace.sRGB)) else { return false }
            context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
            return true
        }
        guard drawn else { throw EncoderError.image("no context for an image of \(height)x\(width)") }
        if !opaque { divideByAlpha(&rgba) }
        try self.init(rgba: rgba, height: height, width: width, orientation: orientation)
    }

    private init(rgba: [UInt8], height: Int, width: Int, orientation: CGImagePropertyOrientation) throws {
        let turned = [.left, .leftMirrored, .right, .rightMirrored].contains(orientation)
        let (newHeight, newWidth) = turned ? (width, height) : (height, width)
        var pixels = [UInt8](repeating: 0, count: 3 * height * width)
        for row in 0..<newHeight {
            for column in 0..<newWidth {
                // Where the file has what belongs here, by the definitions of the EXIF orientation.
                let from: (row: Int, column: Int)
                switch orientation {
                case .up: from = (row, column)
                case .upMirrored: from = (row, width - 1 - column)
                case .down: from = (height - 1 - row, width - 1 - column)
                case .downMirrored: from = (height - 1 - row, column)
                case .leftMirrored: from = (column, row)
                case .right: from = (height - 1 - column, row)
                case .rightMirrored: from = (height - 1 - column, width - 1 - row)
                case .left: from = (column, width - 1 - row)
                }
                let (to, at) = (3 * (row * newWidth + column), 4 * (from.row * width + from.column))
                for channel in 0..<3 { pixels[to + channel] = rgba[at + channel] }
            }
        }
        try self.init(pixels: pixels, height: newHeight, width: newWidth)
    }
}

private func divideByAlpha(_ rgba: inout [UInt8]) {
    for at in stride(from: 0, to: rgba.count, by: 4) {
        let alpha = Int(rgba[at + 3])
        guard alpha > 0 else { continue }
        for channel in 0..<3 { rgba[at + channel] = UInt8(min((Int(rgba[at + channel]) * 255 + alpha / 2) / alpha, 255)) }
    }
}
