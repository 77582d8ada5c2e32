// The encoder over onnxruntime-web, on WebAssembly.
//
//     const encoder = await Encoder.load("model/");
//     const { last_hidden_state } = await encoder.encode(await decodeImage(file, file.name));

import * as ort from "onnxruntime-web/wasm";

import { contract } from "./contract.js";
import { fetchModel } from "./files.js";
import { preprocess, type Image, type Input } from "./preprocess.js";
import { checkInput, chooseThreads, INPUT_SHAPE, type Options, type Outputs } from "./tensor.js";

export const ENGINE = `ONNX Runtime Web ${ort.env.versions.web}`;

export class Encoder {
  private constructor(
    private readonly session: ort.InferenceSession,
    /** Threads that it runs on. */
    readonly threads: number,
    /** Whether the model was compared with the contract's SHA-256. */
    readonly checked: boolean,
  ) {}

  /**
   * Loads the artifact. The engine takes its number of threads from the first encoder of a page.
   *
   * @param folder URL of the artifact, as vitedge wrote it.
   * @throws Error if the model is missing or changed, or the engine's files are missing; RangeError for `threads`.
   */
  static async load(folder: string | URL, options: Options = {}): Promise<Encoder> {
    const threads = chooseThreads(options.threads, crossOriginIsolated);
    const engine = new URL(options.engine ?? "./vendor/onnxruntime-web/dist/", import.meta.url);
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmPaths = engine.href;
    const { bytes, checked } = await fetchModel(new URL(folder, location.href));
    try {
      const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
      return new Encoder(session, threads, checked);
    } catch (cause) {
      throw new Error(`${ENGINE}: cannot load ${contract.modelFile} with the files of ${engine.pathname} (${cause})`, {
        cause,
      });
    }
  }

  /** Preprocesses one image of any size, and runs the encoder. Throws as `resize` and `run` do. */
  encode(image: Image): Promise<Outputs> {
    return this.run(preprocess(image));
  }

  /**
   * Runs the encoder on an input that is preprocessed, in the order of `contract.inputLayout`.
   *
   * @throws RangeError if it has another type or size.
   */
  async run(input: Input): Promise<Outputs> {
    checkInput(input);
    const tensor = new ort.Tensor(contract.inputDtype, input, INPUT_SHAPE);
    const found = await this.session.run({ [contract.inputName]: tensor }, contract.outputNames);
    return Object.fromEntries(
      contract.outputNames.map((name) => {
        const { dims, data } = found[name]!;
        return [name, { shape: dims, values: data as Float32Array }];
      }),
    );
  }
}
