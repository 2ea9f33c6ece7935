// node --import ./bearer.mjs PROGRAM: every request to BULKHEAD_URL carries BULKHEAD_TOKEN, for a program that has no option for one.
// The suite sends by three doors: fetch, undici's request, and http.request. A request that has a token of its own keeps it.
import http from 'node:http';
import { getGlobalDispatcher, setGlobalDispatcher } from 'undici';

const { origin } = new URL(process.env.BULKHEAD_URL);
const { host } = new URL(origin);
const bearer = `Bearer ${process.env.BULKHEAD_TOKEN}`;

const send = globalThis.fetch;
globalThis.fetch = (input, init = {}) => {
  const url = new URL(input instanceof Request ? input.url : input);
  if (url.origin !== origin) return send(input, init);
  const headers = new Headers(init.headers ?? (input instanceof Request ? input.headers : undefined));
  if (!headers.has('authorization')) headers.set('authorization', bearer);
  return send(input, { ...init, headers });
};

// undici takes headers as an object, as pairs, or as one flat list of names and values
const asObject = (headers) => {
  if (!headers) return {};
  if (Array.isArray(headers) && !Array.isArray(headers[0])) {
    return Object.fromEntries(headers.flatMap((_, i) => (i % 2 ? [] : [[String(headers[i]), String(headers[i + 1])]])));
  }
  return typeof headers[Symbol.iterator] === 'function' ? Object.fromEntries(headers) : headers;
};
const withToken = (headers) => {
  const named = asObject(headers);
  return Object.keys(named).some((name) => name.toLowerCase() === 'authorization')
    ? named
    : { ...named, authorization: bearer };
};
setGlobalDispatcher(
  getGlobalDispatcher().compose((dispatch) => (options, handler) =>
    dispatch(
      String(options.origin) === origin ? { ...options, headers: withToken(options.headers) } : options,
      handler,
    ),
  ),
);

const request = http.request;
http.request = (...args) => {
  const [first] = args;
  const at = typeof first === 'string' || first instanceof URL ? 1 : 0;
  const options = typeof args[at] === 'object' ? args[at] : {};
  const target = at === 1 ? new URL(first).host : `${options.hostname ?? options.host}:${options.port}`;
  if (target !== host) return request(...args);
  const headers = Array.isArray(options.headers)
    ? [...options.headers, 'authorization', bearer]
    : withToken(options.headers);
  args.splice(at, typeof args[at] === 'object' ? 1 : 0, { ...options, headers });
  return request(...args);
};
