"""Components of FATE's own for comparison: one does nothing, one exchanges as many messages as an empty round."""

from fate.components.core import ARBITER, GUEST, HOST, Role, cpn


@cpn.component(roles=[GUEST, HOST, ARBITER], provider="fate")
def flow_round_nothing(ctx, role: Role):
    """Return at once."""


@cpn.component(roles=[GUEST, HOST, ARBITER], provider="fate")
def flow_round_messages(ctx, role: Role):
    """Two small messages each way between the arbiter and each client: FATE's own put and get, nothing else."""
    for number in range(2):
        part = ctx.sub_ctx("flow_round").indexed_ctx(number)
        if role.is_arbiter:
            clients = [part.parties[rank] for rank, party in enumerate(ctx.federation.parties) if party[0] != "arbiter"]
            for client in clients:
                client.get("to_arbiter")
            for client in clients:
                client.put("to_clients", b"x" * 100)
        else:
            part.arbiter.put("to_arbiter", b"x" * 100)
            part.arbiter.get("to_clients")
