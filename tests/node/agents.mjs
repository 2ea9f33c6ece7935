// node agents.mjs BINDING: drives an A2A server through @a2a-js/sdk by one binding, as its card names it, and prints what a program
// that uses it would see, as one line of JSON. BULKHEAD_URL, BULKHEAD_TOKEN, BULKHEAD_HOOK (a webhook's address).
// The server knows the messages of the compatibility kit (workflows/fixture.py), by how a messageId begins.
import { randomUUID } from 'node:crypto';
import {
  AgentCard, CancelTaskRequest, DeleteTaskPushNotificationConfigRequest, GetTaskPushNotificationConfigRequest, GetTaskRequest,
  ListTaskPushNotificationConfigsRequest, ListTasksRequest, SendMessageRequest, StreamResponse, SubscribeToTaskRequest, Task,
  TaskPushNotificationConfig, verifyAgentCardSignature,
} from '@a2a-js/sdk';
import { ClientFactory, DefaultAgentCardResolver, JsonRpcTransportFactory, RestTransportFactory } from '@a2a-js/sdk/client';
import { GrpcTransportFactory } from '@a2a-js/sdk/client/grpc';

const { BULKHEAD_URL: base, BULKHEAD_TOKEN: token, BULKHEAD_HOOK: hook } = process.env;
const binding = process.argv[2];
const patience = 30_000;

const published = await (await fetch(`${base}/.well-known/jwks.json`)).json();
const verify = verifyAgentCardSignature(async (kid, jku) => {
  if (jku !== `${base}/.well-known/jwks.json`) throw new Error(`keys at ${jku}`);
  return published.keys.find((key) => key.kid === kid);
});

const bearing = (value) => (input, init = {}) => {
  const headers = new Headers(init.headers);
  if (value) headers.set('authorization', `Bearer ${value}`);
  return fetch(input, { ...init, headers });
};

// gRPC has no fetch to wrap: its token goes with each call
const options = (more = {}) => ({
  signal: AbortSignal.timeout(patience),
  serviceParameters: { ...(binding === 'GRPC' ? { authorization: `Bearer ${token}` } : {}), ...more },
});

function factory(fetchImpl, preferred) {
  const transports = [new JsonRpcTransportFactory({ fetchImpl }), new RestTransportFactory({ fetchImpl }), new GrpcTransportFactory()];
  const chosen = transports.filter((one) => one.protocolName === preferred);
  return new ClientFactory({ transports: chosen, cardResolver: new DefaultAgentCardResolver({ fetchImpl }) });
}

async function connected() {
  const door = binding === 'GRPC' ? 'JSONRPC' : binding;
  const first = await factory(bearing(token), door).createFromUrl(base);
  if (binding !== 'GRPC') return first;
  const card = await first.getAgentCard({ signal: AbortSignal.timeout(patience) });
  return factory(bearing(token), binding).createFromAgentCard(card);
}

const sent = (prefix, { text = 'hi', taskId = '', ...configuration } = {}) =>
  SendMessageRequest.fromJSON({
    message: { messageId: `${prefix}-${randomUUID()}`, taskId, role: 'ROLE_USER', parts: [{ text }] },
    configuration,
  });

async function refusal(work) {
  try {
    return { result: await work() };
  } catch (error) {
    const { message, cause } = error;
    return { name: error.constructor.name, message, status: error.statusCode ?? error.code ?? cause?.code };
  }
}

async function all(stream, enough = () => false) {
  const events = [];
  for await (const event of stream) {
    events.push(StreamResponse.toJSON(event));
    if (enough(event)) break;
  }
  return events;
}

const client = await connected();
const report = { transport: client.transport.protocolName, version: client.protocolVersion };

const publicCard = await new DefaultAgentCardResolver().resolve(base);
await verify(publicCard);
report.publicCard = AgentCard.toJSON(publicCard);
report.forged = await refusal(() => verify({ ...publicCard, name: 'Somebody else' }));
// the SDK canonicalizes what it reads as JSON: a card that it has parsed loses its security schemes there
report.card = AgentCard.toJSON(await client.getAgentCard(options()));
await verify(report.card);
report.parsed = await refusal(() => client.getAgentCard(options(), verify));

const question = 'What is the notice period of the lease?';
report.answered = Task.toJSON(await client.sendMessage(sent('rag', { text: question }), options()));
report.streamed = await all(client.sendMessageStream(sent('rag', { text: question }), options()));
report.chunked = await all(client.sendMessageStream(sent('tck-stream-artifact-chunked'), options()));

// a stream that is left, taken up again after the last event that was seen, while another connection cancels
const left = await all(client.sendMessageStream(sent('test-resubscribe-message-id'), options()), (event) => event.payload?.$case === 'task');
const { id } = left[0].task;
const seen = left[0].task.metadata['urn:bulkhead:a2a:resume:v1'].seq;
const snapshot = client.resubscribeTask(SubscribeToTaskRequest.fromJSON({ id }), options());
report.snapshot = StreamResponse.toJSON((await snapshot.next()).value);
report.canceled = Task.toJSON(await client.cancelTask(CancelTaskRequest.fromJSON({ id }), options()));
report.rest = await all(snapshot);
report.seen = seen;
report.resumed = await all(client.resubscribeTask(SubscribeToTaskRequest.fromJSON({ id }), options({ 'Last-Event-ID': String(seen) })));
report.again = await refusal(() => client.cancelTask(CancelTaskRequest.fromJSON({ id }), options()));
report.unknown = await refusal(() => client.getTask(GetTaskRequest.fromJSON({ id: randomUUID() }), options()));
report.ended = await refusal(() => all(client.resubscribeTask(SubscribeToTaskRequest.fromJSON({ id }), options())));

// a task that asks, its webhooks, and the answer
const asking = Task.toJSON(await client.sendMessage(sent('tck-input-required'), options()));
report.asking = asking;
const place = { taskId: asking.id };
const config = { ...place, url: hook, token: 'opaque', authentication: { scheme: 'Bearer', credentials: 'secret' } };
const made = await client.createTaskPushNotificationConfig(TaskPushNotificationConfig.fromJSON({ ...config, id: 'kept' }), options());
await client.createTaskPushNotificationConfig(TaskPushNotificationConfig.fromJSON({ ...config, id: 'dropped', token: 'other' }), options());
report.made = TaskPushNotificationConfig.toJSON(made);
const named = (name) => ({ ...place, id: name });
const got = await client.getTaskPushNotificationConfig(GetTaskPushNotificationConfigRequest.fromJSON(named('kept')), options());
report.got = TaskPushNotificationConfig.toJSON(got);
await client.deleteTaskPushNotificationConfig(DeleteTaskPushNotificationConfigRequest.fromJSON(named('dropped')), options());
const { configs } = await client.listTaskPushNotificationConfig(ListTaskPushNotificationConfigsRequest.fromJSON(place), options());
report.configs = configs.map((one) => one.id);
report.told = Task.toJSON(await client.sendMessage(sent('tck-complete-task', { taskId: asking.id }), options()));
report.polled = Task.toJSON(await client.sendMessage(sent('tck-complete-task', { returnImmediately: true }), options()));
report.read = Task.toJSON(await client.getTask(GetTaskRequest.fromJSON({ id: asking.id }), options()));

const page = async (more = {}) => client.listTasks(ListTasksRequest.fromJSON({ pageSize: 2, ...more }), options());
report.listed = [];
report.pages = 0;
for (let pageToken = ''; report.pages === 0 || pageToken; report.pages += 1) {
  const { tasks, nextPageToken, totalSize } = await page({ pageToken });
  report.listed.push(...tasks.map((one) => one.id));
  report.total = totalSize;
  pageToken = nextPageToken;
}

if (binding !== 'GRPC') {
  const stranger = await factory(bearing(null), binding).createFromUrl(base);
  report.stranger = await refusal(() => stranger.sendMessage(sent('tck-complete-task'), options()));
}
console.log(JSON.stringify(report));
process.exit(0);  // a gRPC channel, which the SDK does not close, would hold the program for a while
