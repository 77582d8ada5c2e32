// swift-tools-version: 5.9
// What the encoder uses of Apple's frameworks that Swift for Linux does not have.
import PackageDescription

let package = Package(
    name: "Apple",
    products: [.library(name: "Apple", targets: ["CoreGraphics", "CryptoKit", "ImageIO"])],
    targets: [
        .target(name: "CoreGraphics"),
        .target(name: "CryptoKit"),
        .target(name: "ImageIO", dependencies: ["CoreGraphics"]),
    ]
)
