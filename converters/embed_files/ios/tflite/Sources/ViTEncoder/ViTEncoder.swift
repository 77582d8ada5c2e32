// The encoder over LiteRT. Not safe to call from several threads at once.

import Foundation
import LiteRT

public final class ViTEncoder {
    private let model: CompiledModel
    private let inputs: [TensorBuffer]
    private let outputs: [TensorBuffer]
    private let names: [String]  // of the outputs

    /// `folder` holds the model. Throws `EncoderError.model` if it was changed, or what LiteRT says of it.
    public init(folder: URL = Model.folder, threads: Int = 1) throws {
        let processor = try CpuOptions()
        try processor.setNumThreads(threads)
        let options = try Options()
        try options.setHardwareAccelerators([.cpu])
        try options.addConcreteOptions(processor)
        let model = try CompiledModel(
            filePath: Model.path(in: folder), environment: Environment(), options: options)
        inputs = try model.createInputBuffers()
        outputs = try model.createOutputBuffers()
        names = try outputs.indices.map { try model.outputName(outputIndex: $0) }
        self.model = model
    }

    /// Features of one image of any size: float values by output, row by row.
    public func encode(_ image: RGBImage) throws -> [String: [Float]] { try run(Preprocess.input(image)) }

    /// Runs the encoder on an input that is preprocessed.
    public func run(_ input: Data) throws -> [String: [Float]] {
        try Model.check(input)
        try inputs[0].write([UInt8](input))
        try model.run(inputs: inputs, outputs: outputs)
        var features = [String: [Float]]()
        for (name, buffer) in zip(names, outputs) {
            let bytes: [UInt8] = try buffer.read()
            features[name] = TensorFormat.output(name).values(Data(bytes))
        }
        return features
    }
}
