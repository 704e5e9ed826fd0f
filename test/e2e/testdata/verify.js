// Verifies webhooks with the npm package standardwebhooks: JSON lines in, one "true" or the error's text out for each.
const { Webhook } = require("standardwebhooks");
const lines = require("fs").readFileSync(0, "utf8").split("\n").filter(Boolean);
for (const line of lines) {
  const { secret, headers, body } = JSON.parse(line);
  try {
    new Webhook(secret).verify(Buffer.from(body, "base64"), headers);
    console.log("true");
  } catch (e) {
    console.log(e.message);
  }
}
