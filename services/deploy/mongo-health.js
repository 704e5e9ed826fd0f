// Whether a MongoDB member can serve; run by mongosh. The member that knows MEMBERS makes the replica set at its first start:
// rs.initiate fails until every one of them answers, and the next check tries again.
const hello = db.hello();
if (hello.isreplicaset && process.env.MEMBERS) {
  const members = process.env.MEMBERS.split(",").map((host, i) => ({ _id: i, host }));
  rs.initiate({ _id: "crivo", members });
}
quit(hello.isWritablePrimary || hello.secondary ? 0 : 1);
