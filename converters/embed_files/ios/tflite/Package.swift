// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "ViTEncoder",
    platforms: [.iOS(.v15), .macOS(.v12)],  // as the runtime asks
    products: [.library(name: "ViTEncoder", targets: ["ViTEncoder"])],
    dependencies: [
        // A branch, as LiteRT's README says: SwiftPM refuses its linker flags in a package that is asked for by version.
        .package(url: "https://github.com/google-ai-edge/LiteRT", branch: "release/2.3.0")
    ],
    targets: [
        .target(
            name: "ViTEncoder",
            dependencies: [.product(name: "LiteRT", package: "LiteRT")],
            path: ".", exclude: ["README.md", "embed.json", "golden", "Tests"], sources: ["Sources"],
            resources: [.copy("model")]),
        .testTarget(
            name: "ViTEncoderTests", dependencies: ["ViTEncoder"],
            path: ".", exclude: ["README.md", "embed.json", "model", "Sources"], sources: ["Tests"],
            resources: [.copy("golden")]),
    ]
)
