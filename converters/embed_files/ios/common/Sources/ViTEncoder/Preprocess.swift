// From decoded pixels to the encoder's input, as the encoder was trained: Pillow's Image.resize to the bit, then
// normalization. Resizing with another library's filter is the commonest cause of bad features on a device.

import Foundation

/// 8-bit RGB, row by row, without padding.
public struct RGBImage: Sendable {
    public let pixels: [UInt8]
    public let height: Int
    public let width: Int

    /// Throws `EncoderError.image` if there are not 3 · height · width pixels.
    public init(pixels: [UInt8], height: Int, width: Int) throws {
        guard height > 0, width > 0, pixels.count == 3 * height * width else {
            throw EncoderError.image("expected \(height)x\(width) RGB pixels, found \(pixels.count) values")
        }
        self.pixels = pixels
        self.height = height
        self.width = width
    }
}

public enum EncoderError: LocalizedError {
    case image(String)
    case input(String)
    case model(String)

    public var errorDescription: String? {
        switch self {
        case .image(let what), .input(let what), .model(let what): return what
        }
    }
}

public enum Preprocess {
    private static let precisionBits = 32 - 8 - 2  // of Pillow's fixed point coefficients

    /// One image to the encoder's input, raw, in the order of `Contract.inputLayout`: normalized, or uint8 as resized.
    public static func input(_ image: RGBImage) throws -> Data {
        let pixels = try resize(image, height: Contract.height, width: Contract.width, resample: Contract.resample)
        if Contract.inputType == "uint8" { return Data(pixels) }
        let area = Contract.height * Contract.width
        let planar = Contract.inputLayout == "NCHW"
        var values = [Float](repeating: 0, count: 3 * area)
        for channel in 0..<3 {
            let table = (0..<256).map {
                (Float($0) * Contract.rescaleFactor - Contract.mean[channel]) / Contract.std[channel]
            }
            for pixel in 0..<area {
                values[planar ? channel * area + pixel : pixel * 3 + channel] = table[Int(pixels[pixel * 3 + channel])]
            }
        }
        return TensorFormat.input.data(values)
    }

    /// Resizes as Pillow's Image.resize((width, height), resample) does, to the bit: RGB, row by row.
    public static func resize(_ image: RGBImage, height: Int, width: Int, resample: String) throws -> [UInt8] {
        if resample == "nearest" { return nearest(image, height: height, width: width) }
        var pixels = image.pixels
        func rows(_ columns: Int) throws {
            guard image.height != height else { return }
            pixels = resizeRows(pixels, width: columns, taps: try taps(image.height, height, resample))
        }
        func columns(_ lines: Int) throws {
            guard image.width != width else { return }
            pixels = resizeColumns(pixels, height: lines, width: image.width, taps: try taps(image.width, width, resample))
        }
        // Pillow (13) runs the vertical pass first where that makes the horizontal one cheaper; the order shows in
        // rounding.
        if image.height > height && image.height - height > 2 * (image.width - width) {
            try rows(image.width)
            try columns(height)
        } else {
            try columns(image.height)
            try rows(width)
        }
        return pixels
    }

    // The input pixels that one output pixel reads, and their fixed point weights.
    private struct Taps {
        let begin: Int
        let weights: [Int32]
    }

    private static func sinc(_ x: Double) -> Double { x == 0 ? 1 : sin(.pi * x) / (.pi * x) }

    // Filters of Pillow's Resample.c, and their support in source pixels at scale 1.
    private static func filter(_ name: String) throws -> (support: Double, value: (Double) -> Double) {
        switch name {
        case "box": return (0.5, { $0 > -0.5 && $0 <= 0.5 ? 1 : 0 })
        case "bilinear": return (1, { max(0, 1 - abs($0)) })
        case "hamming":
            return (1, { abs($0) < 1 ? sinc($0) * (Double(Float(0.54)) + Double(Float(0.46)) * cos(.pi * $0)) : 0 })
        case "bicubic":
            return (2, {
                let a = -0.5, x = abs($0)
                if x < 1 { return ((a + 2) * x - (a + 3)) * x * x + 1 }
                return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0
            })
        case "lanczos": return (3, { $0 >= -3 && $0 < 3 ? sinc($0) * sinc($0 / 3) : 0 })
        default: throw EncoderError.image("unknown resize filter: \(name)")
        }
    }

    private static func taps(_ size: Int, _ newSize: Int, _ resample: String) throws -> [Taps] {
        let (support, value) = try filter(resample)
        let scale = Double(size) / Double(newSize)
        let filterScale = max(scale, 1)  // a filter widens when it shrinks
        return (0..<newSize).map { output in
            let center = (Double(output) + 0.5) * scale
            let begin = max(Int(center - support * filterScale + 0.5), 0)
            let end = min(Int(center + support * filterScale + 0.5), size)
            let weights = (begin..<end).map { value((Double($0) - center + 0.5) * (1 / filterScale)) }
            let total = weights.reduce(0, +)
            return Taps(begin: begin, weights: weights.map {
                let fixed = (total == 0 ? $0 : $0 / total) * Double(1 << precisionBits)
                return Int32(fixed + (fixed.sign == .minus ? -0.5 : 0.5))
            })
        }
    }

    private static func rounded(_ sum: Int32) -> UInt8 { UInt8(min(max(sum >> Int32(precisionBits), 0), 255)) }

    private static func resizeColumns(_ pixels: [UInt8], height: Int, width: Int, taps: [Taps]) -> [UInt8] {
        var result = [UInt8]()
        result.reserveCapacity(height * taps.count * 3)
        for row in 0..<height {
            for column in taps {
                for channel in 0..<3 {
                    var sum = Int32(1) << Int32(precisionBits - 1)
                    var at = (row * width + column.begin) * 3 + channel
                    for weight in column.weights {
                        sum &+= weight &* Int32(pixels[at])
                        at += 3
                    }
                    result.append(rounded(sum))
                }
            }
        }
        return result
    }

    private static func resizeRows(_ pixels: [UInt8], width: Int, taps: [Taps]) -> [UInt8] {
        var result = [UInt8]()
        result.reserveCapacity(width * taps.count * 3)
        for row in taps {
            var sums = [Int32](repeating: Int32(1) << Int32(precisionBits - 1), count: width * 3)
            for (index, weight) in row.weights.enumerated() {
                let line = (row.begin + index) * width * 3
                for value in 0..<(width * 3) { sums[value] &+= weight &* Int32(pixels[line + value]) }
            }
            result.append(contentsOf: sums.map(rounded))
        }
        return result
    }

    // Source pixel of each output pixel, as Pillow's affine transform: pixel centers, stepped one by one.
    private static func nearest(_ image: RGBImage, height: Int, width: Int) -> [UInt8] {
        func indices(_ size: Int, _ newSize: Int) -> [Int] {
            let step = Double(size) / Double(newSize)
            var center = step * 0.5
            return (0..<newSize).map { _ in
                defer { center += step }
                return min(Int(center), size - 1)
            }
        }
        let columns = indices(image.width, width)
        return indices(image.height, height).flatMap { row in
            columns.flatMap { column -> ArraySlice<UInt8> in
                let at = (row * image.width + column) * 3
                return image.pixels[at..<(at + 3)]
            }
        }
    }
}
