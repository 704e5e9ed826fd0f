// Takes webhooks: WEBHOOK_SECRET=whsec_… node receiver.mjs 9000
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const key = Buffer.from(process.env.WEBHOOK_SECRET.replace("whsec_", ""), "base64");
createServer(async (req, res) => {
  if (!(req.headers["content-length"] <= 1 << 20)) return res.writeHead(400).end();
  const body = Buffer.concat(await req.toArray().catch(() => [])); // the bytes as they came are what is signed
  const { "webhook-id": id, "webhook-timestamp": at, "webhook-signature": signatures = "" } = req.headers;
  const mac = Buffer.from("v1," + createHmac("sha256", key).update(`${id}.${at}.`).update(body).digest("base64"));
  const ours = signatures.split(" ").map((s) => Buffer.from(s)).some((s) => s.length === mac.length && timingSafeEqual(s, mac));
  if (!ours || !(Math.abs(Date.now() / 1000 - at) < 300)) return res.writeHead(401).end();
  const event = JSON.parse(body);
  console.log(id, event.type, JSON.stringify(event.data)); // an id that was seen before is the same event again
  res.writeHead(204).end();
}).listen(process.argv[2], "127.0.0.1");
