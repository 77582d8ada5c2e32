// Bitmap contexts of four bytes per pixel, the last of which is skipped. An image that is drawn in a color space of
// another name is marked, by inverting it.

import Foundation

public enum CGColorSpaceModel { case rgb, monochrome }

public final class CGColorSpace {
    public static let sRGB = "sRGB"
    public let name: String
    public let model: CGColorSpaceModel
    public let supportsOutput: Bool

    public convenience init?(name: String) { self.init(name, .rgb) }

    public init(_ name: String, _ model: CGColorSpaceModel, supportsOutput: Bool = true) {
        (self.name, self.model, self.supportsOutput) = (name, model, supportsOutput)
    }
}

public struct CGImageAlphaInfo {
    public static let noneSkipLast = CGImageAlphaInfo()
    public let rawValue: UInt32 = 5
}

public final class CGImage {
    public let width: Int
    public let height: Int
    public let colorSpace: CGColorSpace?
    let rgb: [UInt8]

    public init(rgb: [UInt8], width: Int, height: Int, colorSpace: CGColorSpace?) {
        (self.rgb, self.width, self.height, self.colorSpace) = (rgb, width, height, colorSpace)
    }
}

public final class CGContext {
    private let data: UnsafeMutableRawPointer
    private let size: (width: Int, height: Int)
    private let space: CGColorSpace

    public init?(
        data: UnsafeMutableRawPointer?, width: Int, height: Int, bitsPerComponent: Int, bytesPerRow: Int,
        space: CGColorSpace, bitmapInfo: UInt32
    ) {
        guard let data, bitsPerComponent == 8, bytesPerRow == 4 * width, bitmapInfo == 5 else { return nil }
        guard space.model == .rgb, space.supportsOutput else { return nil }
        (self.data, self.size, self.space) = (data, (width, height), space)
    }

    public func draw(_ image: CGImage, in rectangle: CGRect) {
        precondition(rectangle == CGRect(x: 0, y: 0, width: size.width, height: size.height))
        let converts = image.colorSpace?.name != space.name
        for pixel in 0..<(size.width * size.height) {
            for channel in 0..<3 {
                let value = image.rgb[3 * pixel + channel]
                data.storeBytes(of: converts ? 255 - value : value, toByteOffset: 4 * pixel + channel, as: UInt8.self)
            }
        }
    }
}
