// The encoder over LiteRT.js, on WebAssembly.
//
//     const encoder = await Encoder.load("model/");
//     const { last_hidden_state } = await encoder.encode(await decodeImage(file, file.name));

import * as litert from "@litertjs/core";

import { contract } from "./contract.js";
import { fetchModel } from "./files.js";
import { preprocess, type Image, type Input } from "./preprocess.js";
import { checkInput, chooseThreads, INPUT_SHAPE, type Options, type Outputs } from "./tensor.js";

export const ENGINE = "LiteRT.js";

export class Encoder {
  private constructor(
    private readonly model: litert.CompiledModel,
    /** Threads that it runs on. */
    readonly threads: number,
    /** Whether the model was compared with the contract's SHA-256. */
    readonly checked: boolean,
  ) {}

  /**
   * Loads the artifact. The engine is loaded once, by the first encoder of a page.
   *
   * @param folder URL of the artifact, as vitedge wrote it.
   * @throws Error if the model is missing or changed, or the engine's files are missing; RangeError for `threads`.
   */
  static async load(folder: string | URL, options: Options = {}): Promise<Encoder> {
    // LiteRT.js has threads only in its build with relaxed SIMD.
    const possible = crossOriginIsolated && (await litert.supportsFeature("relaxedSimd"));
    const threads = chooseThreads(options.threads, possible);
    const engine = new URL(options.engine ?? "./vendor/@litertjs/core/wasm/", import.meta.url);
    const { bytes, checked } = await fetchModel(new URL(folder, location.href));
    try {
      // Its script finds its own files on a page; in a worker it is told, as Emscripten's scripts are.
      const locateFile = (file: string) => new URL(file, engine).href;
      const mainScriptUrlOrBlob = locateFile("litert_wasm_threaded_internal.js"); // what its threads run
      Object.assign(globalThis, { Module: { locateFile, mainScriptUrlOrBlob } });
      await (litert.getGlobalLiteRtPromise() ?? litert.loadLiteRt(engine.href, { threads: threads > 1 }));
      const model = await litert.loadAndCompile(bytes, { accelerator: "wasm", cpuOptions: { numThreads: threads } });
      return new Encoder(model, threads, checked);
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
    const tensor = new litert.Tensor(input, [...INPUT_SHAPE]);
    const found = await this.model.run({ [contract.inputName]: tensor });
    tensor.delete();
    return Object.fromEntries(
      contract.outputNames.map((name) => {
        const output = found[name]!;
        const values = (output.toTypedArray() as Float32Array).slice();
        output.delete();
        return [name, { shape: [...output.type.layout.dimensions], values }];
      }),
    );
  }
}
