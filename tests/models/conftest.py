"""What the tests of networks share: the form that a layer has on CPUs, and that on GPUs."""

import jax
import pytest


@pytest.fixture(params=["cpu", "default"])
def form(request, monkeypatch):
    """Compute layers in the form for CPUs, or in that for GPUs and TPUs, whatever the machine has.

    Not for jitted functions: a trace is kept, whatever the form.
    """

    def chosen(*args, **forms):
        return forms[request.param](*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", chosen)
    return request.param
