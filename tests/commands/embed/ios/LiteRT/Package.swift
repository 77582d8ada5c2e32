// swift-tools-version: 5.9
// LiteRT's Swift API as far as the encoder uses it, over the C API, which the Python package has too.
import PackageDescription

let package = Package(
    name: "LiteRT",
    products: [.library(name: "LiteRT", targets: ["LiteRT"])],
    dependencies: [.package(path: "../Apple")],
    targets: [
        .systemLibrary(name: "CLiteRT"),
        .target(name: "LiteRT", dependencies: ["CLiteRT", .product(name: "Apple", package: "Apple")]),
    ]
)
