// The encoder in a worker, so that the page stays responsive while it computes.
//
//     const encoder = await BackgroundEncoder.load("model/");
//     const { last_hidden_state } = await encoder.encode(await decodeImage(file, file.name));

import type { Image, Input } from "./preprocess.js";
import type { Options, Outputs } from "./tensor.js";

/** What the worker answers, and with what. Classes lose their methods on the way; errors stay errors. */
export interface Answers {
  load: (folder: string, options: Options) => Promise<Loaded>;
  preprocess: (image: Image) => Promise<Input>;
  run: (input: Input) => Promise<Outputs>;
}

export interface Loaded {
  /** Name of the engine, and its version if it tells. */
  engine: string;
  /** Threads that it runs on. */
  threads: number;
  /** Whether the model was compared with the contract's SHA-256. */
  checked: boolean;
}

export interface Request<Name extends keyof Answers = keyof Answers> {
  id: number;
  name: Name;
  given: Parameters<Answers[Name]>;
}

export type Reply = { id: number; value: unknown } | { id: number; error: unknown };

/** What `Encoder` does, elsewhere. Requests are answered one after another, in their order. */
export class BackgroundEncoder {
  private constructor(
    private readonly worker: Connection,
    readonly loaded: Loaded,
  ) {}

  /**
   * Loads the artifact in a worker of its own. Throws as `Encoder.load`, and if the worker's script is missing.
   *
   * @param folder URL of the artifact, as vitedge wrote it; relative to the page.
   */
  static async load(folder: string | URL, options: Options = {}): Promise<BackgroundEncoder> {
    const worker = new Connection(new URL("./background-worker.js", import.meta.url));
    const given = options.engine === undefined ? options : { ...options, engine: absolute(options.engine) };
    try {
      return new BackgroundEncoder(worker, await worker.ask("load", absolute(folder), given));
    } catch (error) {
      worker.end(error);
      throw error;
    }
  }

  /** Preprocesses one image of any size, and runs the encoder. Throws as `resize` and `run` do. */
  async encode(image: Image): Promise<Outputs> {
    return this.run(await this.preprocess(image));
  }

  /** Resizes and normalizes. Throws as `resize`. */
  preprocess(image: Image): Promise<Input> {
    return this.worker.ask("preprocess", image);
  }

  /** Runs the encoder on an input that is preprocessed. Throws as `Encoder.run`. */
  run(input: Input): Promise<Outputs> {
    return this.worker.ask("run", input);
  }

  /** Ends the worker and frees its memory; what it was asked for and has not answered fails. */
  close(): void {
    this.worker.end(new Error("the encoder was closed"));
  }
}

/** Questions to a worker, and the promises of its answers. */
class Connection {
  private readonly worker: Worker;
  private readonly waiting = new Map<number, { resolve: (value: never) => void; reject: (error: unknown) => void }>();
  private asked = 0;
  private failure: unknown;

  constructor(script: URL) {
    this.worker = new Worker(script);
    this.worker.addEventListener("message", ({ data }: MessageEvent<Reply>) => {
      const question = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      if ("error" in data) question?.reject(data.error);
      else question?.resolve(data.value as never);
    });
    this.worker.addEventListener("error", ({ message }) =>
      this.end(new Error(`${script.pathname}: the worker failed (${message || "it cannot be loaded"})`)),
    );
  }

  ask<Name extends keyof Answers>(name: Name, ...given: Parameters<Answers[Name]>): ReturnType<Answers[Name]> {
    return new Promise((resolve, reject) => {
      if (this.failure !== undefined) return reject(this.failure);
      const request: Request<Name> = { id: this.asked++, name, given };
      this.worker.postMessage(request);
      this.waiting.set(request.id, { resolve, reject });
    }) as ReturnType<Answers[Name]>;
  }

  end(failure: unknown): void {
    this.failure = failure;
    this.worker.terminate();
    for (const { reject } of this.waiting.values()) reject(failure);
    this.waiting.clear();
  }
}

function absolute(url: string | URL): string {
  return new URL(url, document.baseURI).href;
}
