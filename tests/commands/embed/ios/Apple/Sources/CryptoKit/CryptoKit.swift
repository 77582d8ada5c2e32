import Foundation

@_silgen_name("SHA256")  // OpenSSL's
private func openSSL(_ data: UnsafePointer<UInt8>, _ count: Int, _ digest: UnsafeMutablePointer<UInt8>)

public enum SHA256 {
    public static func hash(data: Data) -> [UInt8] {
        var digest = [UInt8](repeating: 0, count: 32)
        data.withUnsafeBytes { openSSL($0.bindMemory(to: UInt8.self).baseAddress!, data.count, &digest) }
        return digest
    }
}
