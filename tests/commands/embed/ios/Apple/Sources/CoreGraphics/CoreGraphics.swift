// Bitmap contexts of four bytes per pixel, the last of which is skipped or holds alpha. An image that is drawn in a color
// space of another name is marked, by inverting it.

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

public enum CGImageAlphaInfo: UInt32 {
    case none, premultipliedLast, premultipliedFirst, last, first, noneSkipLast, noneSkipFirst, alphaOnly
}

public final class CGImage {
    public let width: Int
    public let height: Int
    public let colorSpace: CGColorSpace?
    let rgb: [UInt8]
    let alpha: [UInt8]?

    public var alphaInfo: CGImageAlphaInfo { alpha == nil ? .none : .last }

    public init(rgb: [UInt8], width: Int, height: Int, colorSpace: CGColorSpace?, alpha: [UInt8]? = nil) {
        (self.rgb, self.width, self.height, self.colorSpace, self.alpha) = (rgb, width, height, colorSpace, alpha)
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
        guard let data, bitsPerComponent == 8, bytesPerRow == 4 * width else { return nil }
        guard [.premultipliedLast, .noneSkipLast].contains(CGImageAlphaInfo(rawValue: bitmapInfo)) else { return nil }
        guard space.model == .rgb, space.supportsOutput, !space.name.hasPrefix("extended") else { return nil }
        (self.data, self.size, self.space) = (data, (width, height), space)
    }

    /// Over what is there, which is transparent black: colors are multiplied by alpha.
    public func draw(_ image: CGImage, in rectangle: CGRect) {
        precondition(rectangle == CGRect(x: 0, y: 0, width: size.width, height: size.height))
        let converts = image.colorSpace?.name != space.name
        for pixel in 0..<(size.width * size.height) {
            let alpha = image.alpha?[pixel] ?? 255
            for channel in 0..<3 {
                let value = Int(image.rgb[3 * pixel + channel])
                let multiplied = UInt8(((converts ? 255 - value : value) * Int(alpha) + 127) / 255)
                data.storeBytes(of: multiplied, toByteOffset: 4 * pixel + channel, as: UInt8.self)
            }
            data.storeBytes(of: alpha, toByteOffset: 4 * pixel + 3, as: UInt8.self)
        }
    }
}
