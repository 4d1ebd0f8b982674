"""What an attacker reads in a client's questions, measured where the truth is known: at the client."""

from fate_llm_ext.algo.fedcot.attacks.job import attack, check_attack

__all__ = ["attack", "check_attack"]
