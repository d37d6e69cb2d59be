"""quiet.py: only the listed messages of other libraries are dropped, and no error of anybody."""

import logging

import pytest

from modeling_mm.utils import quiet_libraries
from modeling_mm.utils.quiet import MESSAGES


@pytest.mark.parametrize("name", MESSAGES)
def test_only_the_listed_message_is_dropped_and_once(name, caplog):
    quiet_libraries()
    quiet_libraries()
    logger = logging.getLogger(name)
    assert len([each for each in logger.filters if type(each).__name__ == "Unlike"]) == 1
    with caplog.at_level(logging.INFO, logger=name):
        logger.addHandler(caplog.handler)
        try:
            logger.warning("%s", f"<{MESSAGES[name]}>")
            logger.warning("Something else.")
            logger.error(MESSAGES[name])
            logging.getLogger("modeling_mm.any").warning(MESSAGES[name])
        finally:
            logger.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"Something else.", MESSAGES[name]}
    said = [(record.name, record.levelname) for record in caplog.records if MESSAGES[name] in record.getMessage()]
    assert said.count((name, "ERROR")) and ("modeling_mm.any", "WARNING") in said and (name, "WARNING") not in said
