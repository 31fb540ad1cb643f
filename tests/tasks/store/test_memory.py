from __future__ import annotations

import pytest

from tasks.store.memory import MemoryStore
from tests.tasks.store.store_contract import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()
