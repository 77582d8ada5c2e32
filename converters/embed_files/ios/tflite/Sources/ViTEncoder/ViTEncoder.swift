// The encoder over LiteRT (TensorFlow Lite). Not safe to call from several threads at once.

import Foundation
import TensorFlowLite

public final class ViTEncoder {
    private let interpreter: Interpreter

    /// `folder` holds the model. Throws `EncoderError.model` if it was changed, or what the runtime says of it.
    public init(folder: URL, threads: Int = 1) throws {
        var options = Interpreter.Options()
        options.threadCount = threads
        options.isXNNPackEnabled = true
        interpreter = try Interpreter(modelPath: try Model.path(in: folder), options: options)
        try interpreter.allocateTensors()
    }

    /// Features of one image of any size: float values by output, row by row.
    public func encode(_ image: RGBImage) throws -> [String: [Float]] { try run(Preprocess.input(image)) }

    /// Runs the encoder on an input that is preprocessed. Outputs come in the order of `Contract.outputNames`.
    public func run(_ input: Data) throws -> [String: [Float]] {
        try Model.check(input)
        try interpreter.copy(input, toInputAt: 0)
        try interpreter.invoke()
        var outputs = [String: [Float]]()
        for (index, name) in Contract.outputNames.enumerated() {
            outputs[name] = TensorFormat.output(index).values(try interpreter.output(at: index).data)
        }
        return outputs
    }
}
