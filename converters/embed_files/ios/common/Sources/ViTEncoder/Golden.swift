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

    /// Every output against FP32: the worst cosine of an image's first row, which is the class token where there are
    /// tokens, and the SQNR of all values.
    public func inference(_ encoder: ViTEncoder) throws -> Judgement {
        let found = try images.map { try encoder.encode($0) }
        let judgements = try Contract.outputNames.enumerated().map { output, name in
            try judge(output, found.map { $0[name] ?? [] })
        }
        return Judgement(
            passed: judgements.allSatisfy { $0.passed }, found: judgements.map { $0.found }.joined(separator: "; "))
    }

    private func judge(_ output: Int, _ found: [[Float]]) throws -> Judgement {
        let (name, size, width) = (Contract.outputNames[output], Contract.outputSizes[output], Contract.outputWidths[output])
        let expected = try read("fp32/\(name).bin", 4 * size).values(Float(0))
        var (signal, noise, worst) = (0.0, 0.0, 1.0)
        for (index, values) in found.enumerated() {
            guard values.count == size else {
                return Judgement(passed: false, found: "\(name): expected \(size) values, found \(values.count)")
            }
            let reference = expected[(index * size)..<((index + 1) * size)].map(Double.init)
            let other = values.map(Double.init)
            for (one, another) in zip(reference, other) {
                signal += one * one
                noise += (one - another) * (one - another)
            }
            let angle = cosine(reference.prefix(width), other.prefix(width))
            worst = angle.isNaN ? -1 : min(worst, angle)
        }
        let sqnr = 10 * log10(signal / max(noise, 1e-30))
        let (minCosine, minSQNR) = (Contract.minCosines[output], Contract.minSQNRs[output])
        return Judgement(
            passed: worst >= minCosine && sqnr >= minSQNR,  // NaN is neither
            found: "\(name): cosine \(worst) (at least \(minCosine)), SQNR \(sqnr) dB (at least \(minSQNR))")
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
                    let error = abs(value - planes[3 * area * index + planar])
                    if !(error <= worst) { worst = error }  // NaN, too
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
