// Copied among an app's own tests: what is compared with Python, and Core Graphics against its stand-in.

import CoreGraphics
import XCTest

@testable import ViTEncoder

final class OurTests: XCTestCase {
    /// Where Python's files are, and ours go: beside the package, which is where tests run.
    private let folder = URL(fileURLWithPath: FileManager.default.currentDirectoryPath + ".exchange")

    private var package: String { folder.deletingPathExtension().lastPathComponent }

    private func lines(_ name: String) throws -> [[String]] {
        try String(contentsOf: folder.appendingPathComponent(name), encoding: .utf8)
            .split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
    }

    private func read(_ name: String) throws -> Data { try Data(contentsOf: folder.appendingPathComponent(name)) }

    private func write(_ data: Data, _ name: String) throws { try data.write(to: folder.appendingPathComponent(name)) }

    /// A line each: file, height, width, new height, new width, filter.
    func testResize() throws {
        for line in try lines("resize.txt") {
            let size = line[1...4].map { Int($0)! }
            let image = try RGBImage(pixels: [UInt8](read(line[0])), height: size[0], width: size[1])
            let resized = try Preprocess.resize(image, height: size[2], width: size[3], resample: line[5])
            try write(Data(resized), line[0] + ".resized")
        }
    }

    /// A line each: file of floats, type, scale, zero point.
    func testFormats() throws {
        for line in try lines("formats.txt") {
            let format = TensorFormat(type: line[1], scale: Float(Double(line[2])!), zeroPoint: Int(line[3])!)
            let integers = format.data(try read(line[0]).values(Float(0)))
            try write(integers, line[0] + ".integers")
            try write(format.values(integers).withUnsafeBytes { Data($0) }, line[0] + ".floats")
        }
    }

    /// Input and outputs of all golden images, by name.
    func testEncode() throws {
        var found = [String: Data]()
        let encoder = try ViTEncoder(threads: 1)
        for line in try lines("../\(package)/golden/index.txt") {
            let pixels = try [UInt8](read("../\(package)/golden/" + line[2]))
            let image = try RGBImage(pixels: pixels, height: Int(line[0])!, width: Int(line[1])!)
            found["input", default: Data()].append(try Preprocess.input(image))
            for (name, values) in try encoder.encode(image) {
                found[name, default: Data()].append(values.withUnsafeBytes { Data($0) })
            }
        }
        for (name, data) in found { try write(data, name + ".bin") }
    }

    private let rgb: [UInt8] = [1, 2, 3, 255, 128, 64, 9, 8, 7, 0, 254, 100, 50, 60, 70, 33, 44, 55]

    /// Colors stay as they are in an RGB space; others are converted, which the stand-in shows by inverting.
    func testColors() throws {
        func pixels(_ space: CGColorSpace?) throws -> [UInt8] {
            let image = try RGBImage(CGImage(rgb: rgb, width: 3, height: 2, colorSpace: space))
            XCTAssertEqual([image.height, image.width], [2, 3])
            return image.pixels
        }
        XCTAssertEqual(try pixels(CGColorSpace("Display P3", .rgb)), rgb)
        XCTAssertEqual(try pixels(CGColorSpace(name: CGColorSpace.sRGB)), rgb)
        let others = [CGColorSpace("gray", .monochrome), CGColorSpace("input only", .rgb, supportsOutput: false)]
        for other in others + [CGColorSpace("extended sRGB", .rgb), nil] {
            XCTAssertEqual(try pixels(other), rgb.map { 255 - $0 })
        }
    }

    /// Alpha is dropped, as by Python's decoders, but for what multiplying by it lost.
    func testAlpha() throws {
        let space = CGColorSpace(name: CGColorSpace.sRGB)
        let alpha: [UInt8] = [255, 128, 200, 255, 128, 0]
        let image = try RGBImage(CGImage(rgb: rgb, width: 3, height: 2, colorSpace: space, alpha: alpha))
        for (index, (found, expected)) in zip(image.pixels, rgb).enumerated() {
            let lost = alpha[index / 3] == 0 ? Int(expected) : alpha[index / 3] == 255 ? 0 : 1
            XCTAssertLessThanOrEqual(abs(Int(found) - Int(expected)), lost, "\(index)")
        }
    }

    /// A line each: file as the stand-in decodes it, height and width of what it is, file of what it is.
    func testOrientation() throws {
        for line in try lines("orientations.txt") {
            let image = try RGBImage(decoding: read(line[0]))
            XCTAssertEqual([image.height, image.width], [Int(line[1])!, Int(line[2])!], line[0])
            XCTAssertEqual(image.pixels, [UInt8](try read(line[3])), line[0])
        }
    }

    func testRefusals() throws {
        func message(_ run: () throws -> Void) -> String {
            do { try run() } catch { return error.localizedDescription }
            return "nothing was thrown"
        }
        XCTAssertEqual(
            message { _ = try RGBImage(pixels: [1, 2, 3], height: 1, width: 2) },
            "expected 1x2 RGB pixels, found 3 values")
        for damaged in [Data([1, 2]), Data([1, 1, 2, 7, 7, 7])] {
            XCTAssertEqual(
                message { _ = try RGBImage(decoding: damaged) },
                "expected an image, found \(damaged.count) bytes that ImageIO cannot decode, or not whole")
        }
        let expected = 3 * Contract.height * Contract.width * TensorFormat.input.size
        XCTAssertEqual(
            message { _ = try ViTEncoder().run(Data([1, 2])) }, "expected \(expected) bytes, found 2")
        let other = folder.appendingPathComponent("other")
        try FileManager.default.createDirectory(at: other, withIntermediateDirectories: true)
        try Data().write(to: other.appendingPathComponent("index.txt"))
        XCTAssertEqual(
            message { _ = try Golden(folder: other) }, "golden/index.txt: names no image; copy the folder again")
        try Data([1]).write(to: other.appendingPathComponent(Contract.modelFile))
        let said = message { _ = try ViTEncoder(folder: other) }
        XCTAssertTrue(said.hasSuffix("found 4bf5122f3445; truncated or changed in transit"), said)
    }
}
