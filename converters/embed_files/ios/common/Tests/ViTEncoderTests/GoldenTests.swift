import ViTEncoder
import XCTest

final class GoldenTests: XCTestCase {
    private let golden = Bundle.module.resourceURL!.appendingPathComponent("golden")

    func testPreprocessing() throws {
        let judgement = try Golden(folder: golden).preprocessing()
        print("preprocessing: \(judgement.found)")
        XCTAssertTrue(judgement.passed, judgement.found)
    }

    func testInference() throws {
        let judgement = try Golden(folder: golden).inference(ViTEncoder())
        print("inference: \(judgement.found)")
        XCTAssertTrue(judgement.passed, judgement.found)
    }
}
