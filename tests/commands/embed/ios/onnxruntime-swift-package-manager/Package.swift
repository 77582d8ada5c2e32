// swift-tools-version: 5.9
// ONNX Runtime's Objective-C API, as Swift sees it and as far as the encoder uses it, over the C API.
import PackageDescription

let package = Package(
    name: "onnxruntime",
    products: [.library(name: "onnxruntime", targets: ["OnnxRuntimeBindings"])],
    dependencies: [.package(path: "../Apple")],
    targets: [
        .systemLibrary(name: "COnnxRuntime"),
        .target(name: "OnnxRuntimeBindings", dependencies: ["COnnxRuntime", .product(name: "Apple", package: "Apple")]),
    ]
)
