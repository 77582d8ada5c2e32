// Files that hold an image as it is: orientation, height and width, a byte each, and RGB.

import CoreGraphics
import Foundation

public typealias CFData = NSData
public typealias CFDictionary = NSDictionary

public let kCGImagePropertyOrientation = "Orientation"

public enum CGImagePropertyOrientation: UInt32 {
    case up = 1, upMirrored, down, downMirrored, leftMirrored, right, rightMirrored, left
}

public struct CGImageSource { let data: Data }

public func CGImageSourceCreateWithData(_ data: CFData, _ options: CFDictionary?) -> CGImageSource? {
    CGImageSource(data: data as Data)
}

public func CGImageSourceCreateImageAtIndex(_ source: CGImageSource, _ index: Int, _ options: CFDictionary?) -> CGImage? {
    let bytes = [UInt8](source.data)
    guard bytes.count > 3, bytes.count == 3 + 3 * Int(bytes[1]) * Int(bytes[2]) else { return nil }
    let space = CGColorSpace(name: CGColorSpace.sRGB)
    return CGImage(rgb: Array(bytes[3...]), width: Int(bytes[2]), height: Int(bytes[1]), colorSpace: space)
}

public func CGImageSourceCopyPropertiesAtIndex(_ source: CGImageSource, _ index: Int, _ options: CFDictionary?)
    -> CFDictionary?
{
    source.data[0] == 0 ? nil : [kCGImagePropertyOrientation: UInt32(source.data[0])] as NSDictionary
}
