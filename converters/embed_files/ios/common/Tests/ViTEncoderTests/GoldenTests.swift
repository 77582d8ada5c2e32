// Does the artifact do here what it did on the host? Preprocessing and inference are judged apart.

import XCTest

@testable import ViTEncoder

final class GoldenTests: XCTestCase {
    private let golden = Bundle.module.resourceURL!.appendingPathComponent("golden")

    private func images() throws -> [RGBImage] {
        let index = try String(contentsOf: golden.appendingPathComponent("index.txt"), encoding: .utf8)
        return try index.split(separator: "\n").map { line in
            let words = line.split(separator: " ")
            let pixels = try Data(contentsOf: golden.appendingPathComponent(String(words[2])))
            return try RGBImage(pixels: [UInt8](pixels), height: XCTUnwrap(Int(words[0])), width: XCTUnwrap(Int(words[1])))
        }
    }

    func testPreprocessing() throws {
        let area = 3 * Contract.height * Contract.width
        let resized = [UInt8](try Data(contentsOf: golden.appendingPathComponent("resized.bin")))
        let planes = try Data(contentsOf: golden.appendingPathComponent("pixel_values.bin")).values(Float(0))
        for (index, image) in try images().enumerated() {
            let found = try Preprocess.resize(
                image, height: Contract.height, width: Contract.width, resample: Contract.resample)
            XCTAssertEqual(found, Array(resized[(index * area)..<((index + 1) * area)]))
            guard Contract.inputType == "float32" else { continue }
            let values = try Preprocess.input(image).values(Float(0))
            for pixel in 0..<(area / 3) {
                for channel in 0..<3 {
                    let planar = channel * area / 3 + pixel, packed = pixel * 3 + channel
                    let value = values[Contract.inputLayout == "NCHW" ? planar : packed]
                    XCTAssertEqual(value, planes[index * area + planar], accuracy: 1e-6)
                }
            }
        }
    }

    /// An input of integers holds those that Python made of the same images.
    func testQuantization() throws {
        guard ["int8", "int16"].contains(Contract.inputType) else { return }
        let expected = try Data(contentsOf: golden.appendingPathComponent("quantized.bin"))
        XCTAssertEqual(try images().reduce(into: Data()) { $0.append(try Preprocess.input($1)) }, expected)
    }

    func testInference() throws {
        let expected = try Data(contentsOf: golden.appendingPathComponent("fp32/last_hidden_state.bin")).values(Float(0))
        let encoder = try ViTEncoder()
        var signal = 0.0, noise = 0.0
        let size = Contract.tokens * Contract.hidden
        for (index, image) in try images().enumerated() {
            let found = try XCTUnwrap(try encoder.encode(image)["last_hidden_state"]).map(Double.init)
            let reference = expected[(index * size)..<((index + 1) * size)].map(Double.init)
            XCTAssertEqual(found.count, size)
            for (one, other) in zip(reference, found) {
                signal += one * one
                noise += (one - other) * (one - other)
            }
            let tokens = zip(reference, found).prefix(Contract.hidden)
            let product = tokens.reduce(0) { $0 + $1.0 * $1.1 }
            let norms = tokens.reduce(0) { $0 + $1.0 * $1.0 } * tokens.reduce(0) { $0 + $1.1 * $1.1 }
            XCTAssertGreaterThanOrEqual(product / norms.squareRoot(), Contract.minCosine, "image \(index)")
        }
        XCTAssertGreaterThanOrEqual(10 * log10(signal / max(noise, 1e-30)), Contract.minSQNR)
    }
}
