"""A task that takes and returns a pydantic model.

Owns: nothing else. Must not know: which test uses it.
"""
# No postponed annotations: those of the task are evaluated by pydantic.

from celery import Celery, current_task
from pydantic import BaseModel

from celery_idem import IdempotentTask
from tests.integration.apps.base import effect


class Order(BaseModel):
    """What somebody buys."""

    customer: str
    amount: int


def add_task(app: Celery) -> None:
    """Adds the task to an app."""

    @app.task(
        base=IdempotentTask,
        name="tests.buy",
        pydantic=True,
        autoretry_for=(OSError,),
        default_retry_delay=0,
    )
    def buy(order: Order) -> Order:
        """Fails once, so that its retry carries the arguments as well."""
        effect("buy", type(order).__name__)
        if not current_task.request.retries:
            raise OSError("not yet")
        return order.model_copy(update={"amount": order.amount + 1})
