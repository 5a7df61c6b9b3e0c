// The official `openai` npm SDK against a running server: one streamed turn, one tool call round trip, one cancel.
// Reads OPENAI_BASE_URL and OPENAI_API_KEY as the SDK itself does; prints the report that ../report.py checks.
import OpenAI from 'openai';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';
import { readScript, report, weatherTool } from './report.mjs';

const script = readScript();
const rt = await OpenAIRealtimeWS.create(new OpenAI(), { model: script.model });
const errors = [];
rt.on('error', (error) => errors.push(String(error.message)));
const listeners = new Set();
rt.on('event', (event) => listeners.forEach((listener) => listener(event)));

const userSays = (text) =>
  rt.send({
    type: 'conversation.item.create',
    item: { type: 'message', role: 'user', content: [{ type: 'input_text', text }] },
  });

// The answer that `act` starts: its deltas, the calls it made, and its response.done.
const answer = (act, onDelta = () => {}) =>
  new Promise((resolve) => {
    const seen = { text: '', num_deltas: 0, calls: [] };
    const listener = (event) => {
      if (event.type === 'response.output_text.delta') {
        seen.text += event.delta;
        onDelta(++seen.num_deltas);
      } else if (event.type === 'response.function_call_arguments.done') {
        seen.calls.push({ name: event.name, arguments: JSON.parse(event.arguments), call_id: event.call_id });
      } else if (event.type === 'response.done') {
        listeners.delete(listener);
        resolve({ ...seen, status: event.response.status, output_tokens: event.response.usage.output_tokens });
      }
    };
    listeners.add(listener);
    act();
  });

const create = () => rt.send({ type: 'response.create' });

await new Promise((resolve) => rt.on('session.created', resolve));
const updated = new Promise((resolve) => rt.on('session.updated', resolve));
rt.send({
  type: 'session.update',
  session: { type: 'realtime', output_modalities: ['text'], tools: [{ type: 'function', ...weatherTool }] },
});
await updated;

userSays(script.turn);
const turn = await answer(create);

userSays(script.tool);
const called = await answer(create);
rt.send({
  type: 'conversation.item.create',
  item: { type: 'function_call_output', call_id: called.calls[0].call_id, output: script.tool_result },
});
const tool = await answer(create);

userSays(script.cancel);
const cancel = await answer(create, (num) => num === script.cancel_after && rt.send({ type: 'response.cancel' }));

const closed = new Promise((resolve) => rt.socket.on('close', resolve));
rt.close();
await closed;
report({ turn, tool: { ...tool, calls: called.calls }, cancel, errors });
