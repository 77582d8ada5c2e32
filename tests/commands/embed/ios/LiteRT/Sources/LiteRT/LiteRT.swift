import CLiteRT
import Foundation

public struct LiteRtError: Error { public let status: Int32 }

private func check(_ status: Int32) throws {
    guard status == 0 else { throw LiteRtError(status: status) }
}

/// What a function makes.
private func made(_ make: (UnsafeMutablePointer<UnsafeMutableRawPointer?>) -> Int32) throws -> UnsafeMutableRawPointer {
    var pointer: UnsafeMutableRawPointer?
    try check(make(&pointer))
    return pointer!
}

private func counted(_ count: (UnsafeMutablePointer<Int>) -> Int32) throws -> Int {
    var number = 0
    try check(count(&number))
    return number
}

public final class Environment {
    let pointer: UnsafeMutableRawPointer

    public init() throws { pointer = try made { LiteRtCreateEnvironment(0, nil, $0) } }

    deinit { LiteRtDestroyEnvironment(pointer) }
}

public enum Accelerator: Int32 { case cpu = 1, gpu = 2, npu = 4 }

public final class CpuOptions {
    var text = ""

    public init() throws {}

    public func setNumThreads(_ threads: Int) throws { text = "num_threads = \(threads)\n" }
}

public final class Options {
    let pointer: UnsafeMutableRawPointer

    public init() throws { pointer = try made { LiteRtCreateOptions($0) } }

    public func setHardwareAccelerators(_ accelerators: Set<Accelerator>) throws {
        try check(LiteRtSetOptionsHardwareAccelerators(pointer, accelerators.reduce(0) { $0 | $1.rawValue }))
    }

    public func addConcreteOptions(_ options: CpuOptions) throws {
        try check(
            LiteRtAddOpaqueOptions(
                pointer, try made { LiteRtCreateOpaqueOptions("xnnpack", strdup(options.text), { free($0) }, $0) }))
    }

    deinit { LiteRtDestroyOptions(pointer) }
}

public final class TensorBuffer {
    let pointer: UnsafeMutableRawPointer

    init(_ environment: Environment, tensor: UnsafeMutableRawPointer, requirements: UnsafeMutableRawPointer) throws {
        var type = LiteRtRankedTensorType()
        try check(LiteRtGetRankedTensorType(tensor, &type))
        let size = try counted { LiteRtGetTensorBufferRequirementsBufferSize(requirements, $0) }
        pointer = try made { LiteRtCreateManagedTensorBuffer(environment.pointer, 1, &type, size, $0) }  // host memory
    }

    public func write<T>(_ data: [T]) throws {
        let size = try counted { LiteRtGetTensorBufferPackedSize(pointer, $0) }
        guard data.count * MemoryLayout<T>.stride <= size else { throw LiteRtError(status: 1) }
        let address = try made { LiteRtLockTensorBuffer(pointer, $0, 1) }
        data.withUnsafeBytes { address.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        try check(LiteRtUnlockTensorBuffer(pointer))
    }

    public func read<T>() throws -> [T] {
        let size = try counted { LiteRtGetTensorBufferPackedSize(pointer, $0) }
        let address = try made { LiteRtLockTensorBuffer(pointer, $0, 0) }
        let count = size / MemoryLayout<T>.stride
        let data = Array(UnsafeBufferPointer(start: address.bindMemory(to: T.self, capacity: count), count: count))
        try check(LiteRtUnlockTensorBuffer(pointer))
        return data
    }

    deinit { LiteRtDestroyTensorBuffer(pointer) }
}

public final class CompiledModel {
    private let environment: Environment
    private let model: UnsafeMutableRawPointer
    private let signature: UnsafeMutableRawPointer
    private let compiled: UnsafeMutableRawPointer

    public init(filePath: String, environment: Environment, options: Options? = nil) throws {
        let resolved = try options ?? Options()
        let model = try made { LiteRtCreateModelFromFile(environment.pointer, filePath, $0) }
        signature = try made { LiteRtGetModelSignature(model, 0, $0) }
        compiled = try made { LiteRtCreateCompiledModel(environment.pointer, model, resolved.pointer, $0) }
        (self.environment, self.model) = (environment, model)
    }

    public func outputName(outputIndex: Int) throws -> String {
        var name: UnsafePointer<CChar>?
        try check(LiteRtGetSignatureOutputName(signature, outputIndex, &name))
        return String(cString: name!)
    }

    public func createInputBuffers() throws -> [TensorBuffer] {
        try (0..<counted { LiteRtGetNumSignatureInputs(signature, $0) }).map { index in
            try TensorBuffer(
                environment,
                tensor: made { LiteRtGetSignatureInputTensorByIndex(signature, index, $0) },
                requirements: made { LiteRtGetCompiledModelInputBufferRequirements(compiled, 0, index, $0) })
        }
    }

    public func createOutputBuffers() throws -> [TensorBuffer] {
        try (0..<counted { LiteRtGetNumSignatureOutputs(signature, $0) }).map { index in
            try TensorBuffer(
                environment,
                tensor: made { LiteRtGetSignatureOutputTensorByIndex(signature, index, $0) },
                requirements: made { LiteRtGetCompiledModelOutputBufferRequirements(compiled, 0, index, $0) })
        }
    }

    public func run(inputs: [TensorBuffer], outputs: [TensorBuffer]) throws {
        var given = inputs.map { Optional($0.pointer) }
        var found = outputs.map { Optional($0.pointer) }
        try check(LiteRtRunCompiledModel(compiled, 0, given.count, &given, found.count, &found))
    }

    deinit {
        LiteRtDestroyCompiledModel(compiled)
        LiteRtDestroyModel(model)
    }
}
