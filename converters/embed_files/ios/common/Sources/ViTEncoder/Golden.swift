// Does the artifact do here what it did on the host? Preprocessing and inference are judged apart. The package's tests ask
// it; so may an app, as tests of packages do not run on phones.

import Foundation

public struct Golden {
    /// Whether a step passed, and what was found.
    public struct Judgement: Sendable {
        public let passed: Bool
        public let found: String
    }

    private let folder: URL
    private let images: [RGBImage]

    /// The golden vectors in a folder. Throws if one is missing, or has another size than the index says.
    public init(folder: URL) throws {
        self.folder = folder
        let index = try String(contentsOf: folder.appendingPathComponent("index.txt"), encoding: .utf8)
        images = try index.split(separator: "\n").map { line in
            let words = line.split(separator: " ")  // height, width, file of pixels, PNG
            let pixels = try Data(contentsOf: folder.appendingPathComponent(String(words[2])))
            return try RGBImage(pixels: [UInt8](pixels), height: Int(words[0]) ?? 0, width: Int(words[1]) ?? 0)
        }
        if images.isEmpty { throw EncoderError.input("golden/index.txt: names no image; copy the folder again") }
    }

    /// Resized pixels are equal, and so is what an input of integers holds; normalized floats are to 1e-6.
    public func preprocessing() throws -> Judgement {
        let expected = [UInt8](try read("resized.bin", 3 * Contract.height * Contract.width))
        var resized = [UInt8]()
        for image in images {
            resized += try Preprocess.resize(
                image, height: Contract.height, width: Contract.width, resample: Contract.resample)
        }
        let different = zip(resized, expected).reduce(0) { $0 + ($1.0 == $1.1 ? 0 : 1) }
        let found = "\(different) resized values differ"
        switch Contract.inputType {
        case "uint8": return Judgement(passed: different == 0, found: found)
        case "float32":
            let worst = try normalizationError()
            return Judgement(
                passed: different == 0 && worst <= 1e-6, found: found + "; largest error after normalization \(worst)")
        default:
            let bytes = try quantizationErrors()
            return Judgement(
                passed: different == 0 && bytes == 0, found: found + "; \(bytes) bytes of the quantized input differ")
        }
    }

    /// Against FP32: the worst cosine of class tokens, and the SQNR of `last_hidden_state`.
    public func inference(_ encoder: ViTEncoder) throws -> Judgement {
        let size = Contract.tokens * Contract.hidden
        let expected = try read("fp32/last_hidden_state.bin", 4 * size).values(Float(0))
        var (signal, noise, worst) = (0.0, 0.0, 1.0)
        for (index, image) in images.enumerated() {
            let found = try (encoder.encode(image)["last_hidden_state"] ?? []).map(Double.init)
            let reference = expected[(index * size)..<((index + 1) * size)].map(Double.init)
            guard found.count == size else {
                return Judgement(passed: false, found: "expected \(size) values, found \(found.count)")
            }
            for (one, other) in zip(reference, found) {
                signal += one * one
                noise += (one - other) * (one - other)
            }
            let angle = cosine(reference.prefix(Contract.hidden), found.prefix(Contract.hidden))
            worst = angle.isNaN ? -1 : min(worst, angle)
        }
        let sqnr = 10 * log10(signal / max(noise, 1e-30))
        return Judgement(
            passed: worst >= Contract.minCosine && sqnr >= Contract.minSQNR,  // NaN is neither
            found: "cosine \(worst) (at least \(Contract.minCosine)), SQNR \(sqnr) dB (at least \(Contract.minSQNR))")
    }

    private func normalizationError() throws -> Float {
        let area = Contract.height * Contract.width
        let planes = try read("pixel_values.bin", 4 * 3 * area).values(Float(0))
        var worst: Float = 0
        for (index, image) in images.enumerated() {
            let values = try Preprocess.input(image).values(Float(0))
            for channel in 0..<3 {
                for pixel in 0..<area {
                    let planar = channel * area + pixel
                    let value = values[Contract.inputLayout == "NCHW" ? planar : pixel * 3 + channel]
                    worst = max(worst, abs(value - planes[3 * area * index + planar]))
                }
            }
        }
        return worst
    }

    private func quantizationErrors() throws -> Int {
        let expected = try read("quantized.bin", 3 * Contract.height * Contract.width * TensorFormat.input.size)
        let found = try images.reduce(into: Data()) { $0.append(try Preprocess.input($1)) }
        return zip(found, expected).reduce(0) { $0 + ($1.0 == $1.1 ? 0 : 1) }
    }

    private func read(_ name: String, _ size: Int) throws -> Data {
        let data = try Data(contentsOf: folder.appendingPathComponent(name))
        guard data.count == size * images.count else {
            throw EncoderError.input("golden/\(name): expected \(size * images.count) bytes, found \(data.count)")
        }
        return data
    }

    private func cosine(_ one: ArraySlice<Double>, _ other: ArraySlice<Double>) -> Double {
        func product(_ a: ArraySlice<Double>, _ b: ArraySlice<Double>) -> Double { zip(a, b).reduce(0) { $0 + $1.0 * $1.1 } }
        return product(one, other) / (product(one, one) * product(other, other)).squareRoot()
    }
}
