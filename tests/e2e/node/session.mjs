// A Session from Node: three requests on one stream (an adapter, another adapter, the base model), the last cancelled
// after its first tokens. Prints one JSON object with what came back for each handle.
// Usage: node session.mjs HOST:PORT PROTO_FOLDER ADAPTER ADAPTER
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [address, protoFolder, ...adapters] = process.argv.slice(2);
const CANCELLED_HANDLE = "3";
const definition = loader.loadSync("loraplex/v1/inference.proto", {
  includeDirs: [protoFolder],
  keepCase: true,
  longs: String,
  enums: String,
  oneofs: true,
  defaults: true,
});
const { InferenceService } = grpc.loadPackageDefinition(definition).loraplex.v1;
const client = new InferenceService(address, grpc.credentials.createInsecure());
const call = client.Session({ deadline: Date.now() + 120_000 });

const results = {};
const result = (handle) =>
  (results[handle] ??= { accepted: false, adapters: null, indexes: [], text: "", finish: null, rejected: null });

function submit(handle, adapter, question, maxTokens) {
  const request = {
    chat: { messages: [{ role: "user", content: question }] },
    sampling: { temperature: 0 },
    stop: { max_tokens: maxTokens, ignore_eos: handle === CANCELLED_HANDLE },
  };
  if (adapter) request.adapter = { name: adapter };
  call.write({ submit: { handle, request } });
}

function takeDelta(delta) {
  const one = result(delta.handle);
  for (let i = 0; i < delta.num_tokens; i++) one.indexes.push(delta.first_token + i);
  one.text += delta.text;
  if (delta.finish) one.finish = delta.finish.reason;
  if (delta.handle === CANCELLED_HANDLE && !one.cancelSent && one.indexes.length >= 2) {
    one.cancelSent = true;
    call.write({ cancel: { handles: [CANCELLED_HANDLE] } });
  }
}

let stepsWithSeveral = 0;
call.on("data", (response) => {
  const body = response[response.frame];
  if (response.frame === "accepted") result(body.handle).accepted = true;
  if (response.frame === "started") result(body.handle).adapters = body.prompt.adapters.map((adapter) => adapter.name);
  if (response.frame === "rejected") result(body.handle).rejected = body.error;
  if (response.frame === "tokens") {
    stepsWithSeveral += new Set(body.deltas.map((delta) => delta.handle)).size > 1 ? 1 : 0;
    body.deltas.forEach(takeDelta);
  }
  const handles = Object.values(results);
  if (handles.length === 3 && handles.every((one) => one.finish || one.rejected)) call.end();
});
call.on("error", (error) => {
  console.error(error.message);
  process.exitCode = 1;
});
call.on("status", (status) => {
  console.log(JSON.stringify({ code: status.code, stepsWithSeveral, results }));
  client.close();
});

call.write({ open: {} });
submit("1", adapters[0], "What is the capital of France?", 24);
submit("2", adapters[1], "How is the weather today?", 24);
submit("3", null, "Tell me a very long story about a river.", 2000);
