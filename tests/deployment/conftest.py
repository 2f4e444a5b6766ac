"""The shell of the acceptance tests, for the programs that run on a deployment."""

from tests.acceptance.conftest import look as look
from tests.acceptance.conftest import shell as shell
