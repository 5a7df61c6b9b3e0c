// What the Node programs here share: the script they play, and the one line of JSON they print.
export const readScript = () => JSON.parse(process.env.CONFORMANCE_SCRIPT);

export const weatherTool = {
  name: 'get_weather',
  description: 'The weather in a city',
  parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'], additionalProperties: false },
};

export const report = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
