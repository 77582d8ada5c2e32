import CryptoKit
import Foundation

public enum Model {
    /// The model that this package carries.
    public static var folder: URL { Bundle.module.resourceURL!.appendingPathComponent("model") }

    /// The path of the model in a folder, if it is the one that vitedge wrote.
    static func path(in folder: URL) throws -> String {
        let file = folder.appendingPathComponent(Contract.modelFile)
        let found = SHA256.hash(data: try Data(contentsOf: file, options: .mappedIfSafe))
            .map { String(format: "%02x", $0) }.joined()
        guard found == Contract.modelSHA256 else {
            throw EncoderError.model(
                "\(file.path): expected SHA-256 \(Contract.modelSHA256.prefix(12)), found \(found.prefix(12));"
                    + " truncated or changed in transit")
        }
        return file.path
    }

    static func check(_ input: Data) throws {
        let expected = 3 * Contract.height * Contract.width * TensorFormat.input.size
        guard input.count == expected else {
            throw EncoderError.input("expected \(expected) bytes, found \(input.count)")
        }
    }
}
