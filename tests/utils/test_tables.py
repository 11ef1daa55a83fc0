import dataclasses

from keras_nern.utils.tables import Printable, Table


def test_text_of_a_table():
    table = Table(
        [("conv1", 1_000, 0.5), ("fc", 20, 12.25), ("total", 1_020, "")],
        header=("layer", "weights", "error"),
        align="lr",
        footer=True,
        title="Represented layers",
    )
    assert table.to_text().splitlines() == [
        "Represented layers",
        "layer  weights  error",
        "---------------------",
        "conv1     1000    0.5",
        "fc          20  12.25",
        "---------------------",
        "total     1020",
    ]


def test_text_of_rows_without_a_header():
    assert Table([("a", 1), ("long", 22)]).to_text() == "a     1\nlong  22"
    assert Table([]).to_text() == ""


def test_html_of_a_table():
    table = Table(
        [("a<b", 1), ("total", 1)], header=("layer", "n"), align="lr", footer=True, title="R&D"
    )
    left, right = (f'style="text-align: {side}"' for side in ("left", "right"))
    assert table.to_html() == (
        "<table><caption>R&amp;D</caption>"
        f"<thead><tr><th {left}>layer</th><th {right}>n</th></tr></thead>"
        f"<tbody><tr><td {left}>a&lt;b</td><td {right}>1</td></tr></tbody>"
        f"<tfoot><tr><th {left}>total</th><th {right}>1</th></tr></tfoot></table>"
    )


def test_html_of_rows_without_a_header():
    assert Table([("a",)]).to_html() == (
        '<table><tbody><tr><td style="text-align: left">a</td></tr></tbody></table>'
    )
    assert Table([]).to_html() == "<table><tbody></tbody></table>"


def test_control_characters_are_escaped():
    table = Table([("x\x1b[31mred\n", "größe")])
    assert table.to_text() == r"'x\x1b[31mred\n'  größe"
    assert "\x1b" not in table.to_html()


def test_a_printable_report_shows_its_tables():
    @dataclasses.dataclass(frozen=True)
    class Report(Printable):
        name: str

        def tables(self):
            return [Table([("name", self.name)]), Table([("b", 2)])]

    report = Report("a")
    assert str(report) == "name  a\n\nb  2"
    assert report._repr_html_() == "".join(table.to_html() for table in report.tables())
