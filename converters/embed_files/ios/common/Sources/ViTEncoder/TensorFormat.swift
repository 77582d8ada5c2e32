// Some encoders have integers as input and outputs. Apps see floats all the same: scale and zero point are applied here.

import Foundation

/// How a tensor holds real values: float32 as they are, int8 and int16 as integers q that mean scale * (q - zeroPoint).
struct TensorFormat {
    let type: String
    let scale: Float
    let zeroPoint: Int

    static let input = TensorFormat(type: Contract.inputType, scale: Contract.inputScale, zeroPoint: Contract.inputZeroPoint)

    static func output(_ name: String) -> TensorFormat {
        let index = Contract.outputNames.firstIndex(of: name)!
        return TensorFormat(
            type: Contract.outputTypes[index], scale: Contract.outputScales[index],
            zeroPoint: Contract.outputZeroPoints[index])
    }

    /// Bytes of one value; uint8 is pixels.
    var size: Int { ["float32": 4, "int16": 2, "int8": 1, "uint8": 1][type]! }

    /// Integers are rounded to nearest, halves to even, and clipped, in single precision as in Python.
    func data(_ values: [Float]) -> Data {
        func integer(_ value: Float, _ limit: Float) -> Float {
            min(max((value / scale).rounded(.toNearestOrEven) + Float(zeroPoint), -limit), limit - 1)
        }
        switch type {
        case "int8": return values.map { Int8(integer($0, 128)) }.withUnsafeBytes { Data($0) }
        case "int16": return values.map { Int16(integer($0, 32768)) }.withUnsafeBytes { Data($0) }
        case "float32": return values.withUnsafeBytes { Data($0) }
        default: preconditionFailure("values of \(type) are not written as numbers")
        }
    }

    /// The real values of a tensor's bytes.
    func values(_ data: Data) -> [Float] {
        func real<Integer: BinaryInteger>(_ integer: Integer) -> Float { Float(Int(integer) - zeroPoint) * scale }
        switch type {
        case "int8": return data.values(Int8(0)).map(real)
        case "int16": return data.values(Int16(0)).map(real)
        case "float32": return data.values(Float(0))
        default: preconditionFailure("values of \(type) are not read as numbers")
        }
    }
}

extension Data {
    /// Its bytes as values of one type, that of `zero`.
    func values<Value>(_ zero: Value) -> [Value] {
        var values = [Value](repeating: zero, count: count / MemoryLayout<Value>.stride)
        _ = values.withUnsafeMutableBytes { copyBytes(to: $0) }
        return values
    }
}
