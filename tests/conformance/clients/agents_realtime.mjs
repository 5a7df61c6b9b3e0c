// @openai/agents-realtime against a running server: one streamed turn, one tool call that the SDK runs by itself, one cancel.
// Only the URL, the key and the model are ours; the session keeps the SDK's defaults (audio out, semantic VAD, tracing).
import { RealtimeAgent, RealtimeSession, tool } from '@openai/agents-realtime';
import { readScript, report, weatherTool } from './report.mjs';

const script = readScript();
const calls = [];
const getWeather = tool({
  name: weatherTool.name,
  description: weatherTool.description,
  parameters: weatherTool.parameters,
  strict: true,
  execute: async (input) => {
    calls.push({ name: weatherTool.name, arguments: input });
    return script.tool_result;
  },
});

const agent = new RealtimeAgent({ name: 'Guide', instructions: 'Be brief.', tools: [getWeather] });
const session = new RealtimeSession(agent, { transport: 'websocket', model: script.model });
const errors = [];
session.on('error', ({ error }) => errors.push(String(error?.error?.message ?? error?.message ?? JSON.stringify(error))));
const listeners = new Set();
session.transport.on('*', (event) => listeners.forEach((listener) => listener(event)));

const next = (type) =>
  new Promise((resolve) => {
    const listener = (event) => {
      if (event.type !== type) return;
      listeners.delete(listener);
      resolve(event);
    };
    listeners.add(listener);
  });

// The `num_responses`-th response.done after now, with the deltas until then: the SDK asks for the second by itself after a tool call.
const answer = (numResponses, onDelta = () => {}) =>
  new Promise((resolve) => {
    const seen = { text: '', num_deltas: 0 };
    const listener = (event) => {
      if (event.type === 'response.output_text.delta') {
        seen.text += event.delta;
        onDelta(++seen.num_deltas);
      } else if (event.type === 'response.done' && --numResponses === 0) {
        listeners.delete(listener);
        resolve({ ...seen, status: event.response.status, output_tokens: event.response.usage.output_tokens });
      }
    };
    listeners.add(listener);
  });

const updated = next('session.updated');
await session.connect({ apiKey: process.env.OPENAI_API_KEY, url: `${script.ws_url}?model=${script.model}` });
await updated;

session.sendMessage(script.turn);
const turn = await answer(1);

session.sendMessage(script.tool);
const toolAnswer = await answer(2);

session.sendMessage(script.cancel);
// session.interrupt() stops audio only: with none played it sends nothing. The transport's own event is the way to cancel text.
const cancel = await answer(1, (num) => {
  if (num === script.cancel_after) session.transport.sendEvent({ type: 'response.cancel' });
});
session.interrupt();

const history = session.history.map(({ type, role, content }) => ({
  type,
  role: role ?? null,
  text: content?.map((part) => part.text).join('') ?? null,
}));
session.close();
report({ turn, tool: { ...toolAnswer, calls }, cancel, errors, history });
