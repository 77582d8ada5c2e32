// Files that hold an image as it is: orientation (255 for none), height and width, a byte each, and RGB. Of a file that ends
// too soon the rest is black.

import CoreGraphics
import Foundation

public typealias CFData = NSData
public typealias CFDictionary = NSDictionary

public let kCGImagePropertyOrientation = "Orientation"

public enum CGImagePropertyOrientation: UInt8 {
    case up = 1, upMirrored, down, downMirrored, leftMirrored, right, rightMirrored, left

    /// As of an enumeration from C, which takes any number.
    public init?(rawValue: UInt32) { self = unsafeBitCast(UInt8(rawValue - 1), to: Self.self) }
}

public enum CGImageSourceStatus: Int32 { case statusIncomplete = -1, statusComplete = 0 }

public struct CGImageSource { let data: Data }

public func CGImageSourceCreateWithData(_ data: CFData, _ options: CFDictionary?) -> CGImageSource? {
    CGImageSource(data: data as Data)
}

private func size(_ bytes: Data) -> Int { bytes.count < 3 ? -1 : 3 + 3 * Int(bytes[1]) * Int(bytes[2]) }

public func CGImageSourceGetStatusAtIndex(_ source: CGImageSource, _ index: Int) -> CGImageSourceStatus {
    source.data.count == size(source.data) ? .statusComplete : .statusIncomplete
}

public func CGImageSourceCreateImageAtIndex(_ source: CGImageSource, _ index: Int, _ options: CFDictionary?) -> CGImage? {
    let bytes = [UInt8](source.data)
    guard bytes.count > 3 else { return nil }
    let rest = Array(bytes[3...]) + [UInt8](repeating: 0, count: max(0, size(source.data) - bytes.count))
    let space = CGColorSpace(name: CGColorSpace.sRGB)
    return CGImage(rgb: rest, width: Int(bytes[2]), height: Int(bytes[1]), colorSpace: space)
}

public func CGImageSourceCopyPropertiesAtIndex(_ source: CGImageSource, _ index: Int, _ options: CFDictionary?)
    -> CFDictionary?
{
    source.data[0] == 255 ? nil : [kCGImagePropertyOrientation: UInt32(source.data[0])] as NSDictionary
}
