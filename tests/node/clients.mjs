// node clients.mjs CLIENT: drives a server through one of the TypeScript SDKs and prints what a program that uses it would see,
// as one line of JSON. BULKHEAD_URL, BULKHEAD_TOKEN, BULKHEAD_NARROW_TOKEN (of a user with a low rate limit).
import { Client as ClientV1 } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport as TransportV1 } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';

const identity = { name: 'interop', version: '1' };
const url = new URL(process.env.BULKHEAD_URL);
const withToken = (token) => ({ requestInit: { headers: { Authorization: `Bearer ${token}` } } });
const clients = {
  'sdk-v1': async (token) => {
    const client = new ClientV1(identity);
    const transport = new TransportV1(url, withToken(token));
    await client.connect(transport);
    return [client, transport.protocolVersion];
  },
  'client-v2-legacy': (token) => connected(new Client(identity), token),
  'client-v2': (token) => connected(new Client(identity, { versionNegotiation: { mode: 'auto' } }), token),
};

async function connected(client, token) {
  await client.connect(new StreamableHTTPClientTransport(url, withToken(token)));
  return [client, client.getNegotiatedProtocolVersion()];
}

async function refusal(work) {
  try {
    return { result: await work() };
  } catch (error) {
    return { name: error.constructor.name, code: error.code, message: error.message, data: error.data };
  }
}

async function everythingOf(client) {
  const offered = client.getServerCapabilities();
  const seen = {};
  if (offered.resources) {
    seen.templates = (await client.listResourceTemplates()).resourceTemplates.map((one) => one.uriTemplate);
    const [first] = (await client.listResources()).resources;
    if (first) seen.resource = await client.readResource({ uri: first.uri });
  }
  if (offered.prompts) {
    seen.prompts = (await client.listPrompts()).prompts;
    const [first] = seen.prompts;
    if (first) {
      const given = (first.arguments ?? []).filter((one) => one.required).map((one) => [one.name, 'notice period']);
      seen.prompt = await refusal(() => client.getPrompt({ name: first.name, arguments: Object.fromEntries(given) }));
    }
  }
  return seen;
}

async function untilLimited(client) {
  for (let calls = 0; calls < 20; calls += 1) {
    const answer = await refusal(() => client.callTool({ name: 'list_documents', arguments: {} }));
    if (!answer.result) return { calls, ...answer };
  }
  return null;
}

const connect = clients[process.argv[2]];
const [client, version] = await connect(process.env.BULKHEAD_TOKEN);
const { tools } = await client.listTools();
const call = (name, args) => client.callTool({ name, arguments: args });
const search = await call('hybrid_search', { query: 'notice period', limit: 1 });
const [hit] = search.structuredContent.hits;
const report = {
  version,
  server: client.getServerVersion(),
  tools: tools.map((tool) => tool.name),
  hit,
  read: await call('retrieve_document', { document_id: hit.document_id, start: hit.start, end: hit.end }),
  refused: await refusal(() => call('hybrid_search', { query: '' })),
  unknown: await refusal(() => call('no_such_tool', {})),
  ...(await everythingOf(client)),
};
await client.close();
const [narrow] = await connect(process.env.BULKHEAD_NARROW_TOKEN);
report.limited = await untilLimited(narrow);
await narrow.close();
console.log(JSON.stringify(report));
