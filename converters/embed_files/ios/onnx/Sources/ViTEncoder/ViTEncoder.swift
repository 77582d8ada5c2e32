// The encoder over ONNX Runtime.

import Foundation
import OnnxRuntimeBindings

public final class ViTEncoder {
    private let environment: ORTEnv
    private let session: ORTSession

    /// `folder` holds the model. Throws `EncoderError.model` if it was changed, or what ONNX Runtime says of it.
    public init(folder: URL = Model.folder, threads: Int32 = 0) throws {
        // From 1.29 on ONNX Runtime tells Microsoft of the app, the device and the model, unless this is set before the
        // first environment of the process is made.
        setenv("ORT_DISABLE_TELEMETRY", "1", 0)
        environment = try ORTEnv(loggingLevel: .warning)
        let options = try ORTSessionOptions()
        if threads > 0 { try options.setIntraOpNumThreads(threads) }
        session = try ORTSession(env: environment, modelPath: try Model.path(in: folder), sessionOptions: options)
    }

    /// Features of one image of any size: float values by output, row by row.
    public func encode(_ image: RGBImage) throws -> [String: [Float]] { try run(Preprocess.input(image)) }

    /// Runs the encoder on an input that is preprocessed.
    public func run(_ input: Data) throws -> [String: [Float]] {
        try Model.check(input)
        let (height, width) = (NSNumber(value: Contract.height), NSNumber(value: Contract.width))
        let shape: [NSNumber] = Contract.inputLayout == "NCHW" ? [1, 3, height, width] : [1, height, width, 3]
        let value = try ORTValue(
            tensorData: NSMutableData(data: input),
            elementType: Contract.inputType == "uint8" ? .uInt8 : .float, shape: shape)
        let outputs = try session.run(
            withInputs: [Contract.inputName: value], outputNames: Set(Contract.outputNames), runOptions: nil)
        return try outputs.mapValues { try ($0.tensorData() as Data).values(Float(0)) }
    }
}
