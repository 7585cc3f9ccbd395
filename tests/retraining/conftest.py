"""The MLflow store that other tests use, too."""

from tests.pipelines.conftest import store as store
