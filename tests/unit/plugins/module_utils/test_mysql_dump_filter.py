# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a dump of MariaDB or MySQL is restored."""

from __future__ import annotations

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._mysql_dump_filter import UnfitDumpError, filtered

DUMP = b"""\
/*M!999999\\- enable the sandbox mode */
-- MariaDB dump 10.19  Distrib 10.11
/*!40103 SET TIME_ZONE='+00:00' */;

--
-- Table structure for table `a`
--
CREATE TABLE `a` (
  `id` int
);
--
-- Dumping data for table `a`
--
INSERT INTO `a` VALUES
(1,'\\n-- Table structure for table `b`'),
(2,'CREATE DEFINER=`x`@`y` PROCEDURE');
DELIMITER ;;
/*!50003 CREATE*/ /*!50017 DEFINER=`root`@`localhost`*/ /*!50003 TRIGGER t before insert on a for each row set new.id = 1 */;;
DELIMITER ;
--
-- Table structure for table `b``c`
--
CREATE TABLE `b``c` (`id` int);
--
-- Temporary table structure for view `v`
--
/*!50001 CREATE VIEW `v` AS SELECT 1*/;
--
-- Dumping events for database 'lms'
--
DELIMITER ;;
/*!50106 CREATE*/ /*!50117 DEFINER=`r`@`%`*/ /*!50106 EVENT `e` ON SCHEDULE AT 1 ON COMPLETION PRESERVE ENABLE DO select ' ENABLE '*/ ;;
DELIMITER ;
--
-- Dumping routines for database 'lms'
--
DELIMITER ;;
CREATE DEFINER=`ro``ot`@`localhost` PROCEDURE `p`()
-- Table structure for table `nowhere`
select 1 ;;
DELIMITER ;
--
-- Final view structure for view `v`
--
/*!50001 CREATE ALGORITHM=UNDEFINED */
/*!50013 DEFINER=`root`@`localhost` SQL SECURITY DEFINER */
/*!50001 VIEW `v` AS select 1 */;
/*!40103 SET TIME_ZONE=@OLD_TIME_ZONE */;

-- Dump completed on 2026-11-28  0:00:00
"""


def lines(content: bytes = DUMP) -> list[bytes]:
    """Return a dump as the filter reads it."""
    return content.splitlines(keepends=True)


def test_a_whole_dump_passes_as_it_is() -> None:
    assert b"".join(filtered(lines())) == DUMP


def test_single_tables_pass_with_their_triggers_and_what_frames_the_dump() -> None:
    passed = b"".join(filtered(lines(), tables=["a"]))

    assert passed.startswith(DUMP[: DUMP.index(b"-- Table structure for table `b``c`")])
    assert b"b``c" not in passed and b"VIEW" not in passed and b"PROCEDURE `p`" not in passed and b"EVENT" not in passed
    assert passed.endswith(b"-- Dump completed on 2026-11-28  0:00:00\n")


def test_a_table_with_an_odd_name_is_found() -> None:
    passed = b"".join(filtered(lines(), tables=["b`c"]))

    assert b"CREATE TABLE `b``c`" in passed and b"INSERT" not in passed


def test_definers_become_who_restores_and_rows_stay() -> None:
    passed = b"".join(filtered(lines(), owners=False))

    assert passed.count(b"DEFINER=CURRENT_USER") == 4
    assert passed.count(b"DEFINER=`") == 1
    assert b"(2,'CREATE DEFINER=`x`@`y` PROCEDURE');\n" in passed


def test_events_do_not_run() -> None:
    passed = b"".join(filtered(lines(), events_become="DISABLE ON SLAVE"))

    assert b"ON COMPLETION PRESERVE DISABLE ON SLAVE DO select ' ENABLE '*/ ;;" in passed


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (b"TRIGGER lms.t before insert on lms.a for each row select 'x.y'", b"TRIGGER t before insert on a for each row select 'x.y'"),
        (
            b"trigger if not exists `l``m`.`t`\nafter update ON\n`x` . `a`\nFOR EACH\nROW 1",
            b"trigger if not exists `t`\nafter update ON\n`a`\nFOR EACH\nROW 1",
        ),
        (b"TRIGGER `t` BEFORE INSERT ON `a` FOR EACH ROW select a.b", b"TRIGGER `t` BEFORE INSERT ON `a` FOR EACH ROW select a.b"),
    ],
)
def test_a_trigger_is_made_where_its_table_is(written: bytes, expected: bytes) -> None:
    before = b"DELIMITER ;;\n/*!50003 CREATE*/ /*!50017 DEFINER=`root`@`localhost`*/ /*!50003 "
    after = b" */;;\nDELIMITER ;\n-- Dump completed\n"

    assert b"".join(filtered(lines(before + written + after))) == before + expected + after


@pytest.mark.parametrize(
    ("content", "tables", "message"),
    [
        (DUMP[: DUMP.index(b"-- Dump completed")], [], "The dump has no end: it was cut off."),
        (b"", [], "The dump has no end: it was cut off."),
        (DUMP, ["a", "nowhere"], "The dump does not have `nowhere`."),
    ],
)
def test_a_dump_that_is_not_whole_is_refused(content: bytes, tables: list[str], message: str) -> None:
    with pytest.raises(UnfitDumpError) as caught:
        list(filtered(lines(content), tables=tables))

    assert str(caught.value) == message
