import COnnxRuntime
import Foundation

private let api = OrtGetApiBase().pointee.GetApi(UInt32(ORT_API_VERSION))!.pointee

public struct ORTError: Error { public let message: String }

private func check(_ status: OpaquePointer?) throws {
    guard let status else { return }
    defer { api.ReleaseStatus(status) }
    throw ORTError(message: String(cString: api.GetErrorMessage(status)!))
}

public enum ORTLoggingLevel: UInt32 { case verbose, info, warning, error, fatal }

public enum ORTTensorElementDataType: UInt32 { case float = 1, uInt8 = 2, int8 = 3 }

public final class ORTRunOptions {}

public final class ORTEnv {
    let pointer: OpaquePointer

    public init(loggingLevel: ORTLoggingLevel) throws {
        var made: OpaquePointer?
        try check(api.CreateEnv(OrtLoggingLevel(rawValue: loggingLevel.rawValue), "stand-in", &made))
        pointer = made!
    }

    deinit { api.ReleaseEnv(pointer) }
}

public final class ORTSessionOptions {
    let pointer: OpaquePointer

    public init() throws {
        var made: OpaquePointer?
        try check(api.CreateSessionOptions(&made))
        pointer = made!
    }

    public func setIntraOpNumThreads(_ threads: Int32) throws { try check(api.SetIntraOpNumThreads(pointer, threads)) }

    deinit { api.ReleaseSessionOptions(pointer) }
}

public final class ORTValue {
    let pointer: OpaquePointer
    private let data: NSMutableData?  // what the tensor of a caller reads

    init(_ pointer: OpaquePointer) { (self.pointer, data) = (pointer, nil) }

    public init(tensorData: NSMutableData, elementType: ORTTensorElementDataType, shape: [NSNumber]) throws {
        var memory, made: OpaquePointer?
        try check(api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeCPU, &memory))
        defer { api.ReleaseMemoryInfo(memory) }
        let type = ONNXTensorElementDataType(rawValue: elementType.rawValue)
        try check(
            api.CreateTensorWithDataAsOrtValue(
                memory, tensorData.mutableBytes, tensorData.length, shape.map(\.int64Value), shape.count, type, &made))
        (pointer, data) = (made!, tensorData)
    }

    /// Like that of Objective-C it does not copy, and is not to outlive this value.
    public func tensorData() throws -> NSMutableData {
        var info: OpaquePointer?
        var count = 0
        var bytes: UnsafeMutableRawPointer?
        try check(api.GetTensorTypeAndShape(pointer, &info))
        defer { api.ReleaseTensorTypeAndShapeInfo(info) }
        try check(api.GetTensorShapeElementCount(info, &count))
        try check(api.GetTensorMutableData(pointer, &bytes))
        return NSMutableData(bytesNoCopy: bytes!, length: 4 * count, freeWhenDone: false)
    }

    deinit { api.ReleaseValue(pointer) }
}

public final class ORTSession {
    private let environment: ORTEnv
    private let pointer: OpaquePointer

    public init(env: ORTEnv, modelPath: String, sessionOptions: ORTSessionOptions?) throws {
        var made: OpaquePointer?
        try check(api.CreateSession(env.pointer, modelPath, try (sessionOptions ?? ORTSessionOptions()).pointer, &made))
        (environment, pointer) = (env, made!)
    }

    public func run(withInputs inputs: [String: ORTValue], outputNames: Set<String>, runOptions: ORTRunOptions?) throws
        -> [String: ORTValue]
    {
        let (given, wanted) = (Array(inputs), Array(outputNames))
        let names = (given.map(\.key) + wanted).map { UnsafePointer(strdup($0)) }
        defer { for name in names { free(UnsafeMutablePointer(mutating: name)) } }
        let values = given.map { Optional($0.value.pointer) }
        var found = [OpaquePointer?](repeating: nil, count: wanted.count)
        try check(
            api.Run(
                pointer, nil, Array(names.prefix(given.count)), values, given.count,
                Array(names.dropFirst(given.count)), wanted.count, &found))
        return Dictionary(uniqueKeysWithValues: zip(wanted, found.map { ORTValue($0!) }))
    }

    deinit { api.ReleaseSession(pointer) }
}
