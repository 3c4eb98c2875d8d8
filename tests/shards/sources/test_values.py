"""Values that may be meant otherwise: which are warned of, and which usual ones are not.

Kinds: classes and names that differ in the way of writing alone (blanks, case, Unicode form, - or
_, numbers as floats or with zeros in front, the suffix of a slide); names that mean none, in words,
signs and numbers, or errors of a spreadsheet; numbers that it rounded; classes that mean no label;
mpp in another unit, or a magnification.
"""

import pytest

from shards.sources.values import (
    is_missing,
    label_warnings,
    mpp_warnings,
    name_warnings,
    tidy_labels,
)

Counts = dict[str, int]
NONE = """
NA N/A n.a. nan NaT None null <NA> #N/A #REF! #VALUE! n/d n.d. unknown UNKNOWN UNK missing undefined
unassigned anonymous (blank) [] {} ? ?? - -- — . _ -1 -9 -999 -1.0 xxx tbd \\N
"""
TEXTS = ("", " ", "\u00a0", "\u200b", "not recorded", "Not Available", "no data", "unknown_patient")
NAMES = "0 00 999 1.0 P1 ND X NAN-1 unknown-lab-7 Anonymous-12 13-XXX TCGA-A6-2671 S1.svs a-1"


def counted(names: str) -> Counts:
    return dict.fromkeys(names.split(","), 7)


@pytest.mark.parametrize("name", [*NONE.split(), *TEXTS])
def test_names_that_mean_none(name: str) -> None:
    assert is_missing(name)


@pytest.mark.parametrize("name", NAMES.split())
def test_names_that_mean_one(name: str) -> None:
    assert not is_missing(name)


LABELS = {
    "case": ("tumor,TUMOR,normal", "'TUMOR' (7), 'tumor' (7) differ in"),
    "blanks": ("tumor,tumor ,normal", "'tumor' (7), 'tumor ' (7) differ in"),
    "no-break blank": ("tumor,tumor\u00a0", "differ in"),
    "no width": ("tumor,tu\u200bmor", "differ in"),
    "Unicode form": ("\u00e9,e\u0301", "differ in"),
    "separators": ("non_idc,non-idc,idc", "differ in"),
    "floats": ("0,1,1.0", "'1' (7), '1.0' (7) differ in"),
    "zeros in front": ("1,01,2", "differ in"),
    "blanks everywhere": (" normal, tumor", "begin or end with a blank"),
    "nan": ("nan,tumor,normal", "'nan' (7) may mean that there is no label"),
    "NA": ("N/A,tumor", "may mean that there is no label"),
    "-1": ("-1,0,1", "may mean that there is no label"),
    "99": ("0,1,2,99", "'99' (7) may mean that there is no label"),
    "255": ("0,1,2,255", "'255' (7) may mean that there is no label"),
    "unlabelled": ("0,Unlabelled", "may mean that there is no label"),
}
USUAL_LABELS = (
    "ADI,BACK,DEB,LYM,MUC,MUS,NORM,STR,TUM",
    "0,1,2,3,4,5,6,7,8,9,10,11",
    "0,1",
    "-1,1",
    "+,-",
    "none,benign,malignant",
    "unknown,tumor",
    "T1,T2,T-1",
    "01_TUMOR,02_STROMA",
    "Gleason 3,Gleason 4,Gleason 3+4",
    "tumor,tumour",
)


@pytest.mark.parametrize("kind", LABELS)
def test_classes_that_may_be_meant_otherwise(kind: str) -> None:
    labels, expected = LABELS[kind]
    (warning,) = label_warnings(counted(labels))
    assert expected in warning


@pytest.mark.parametrize("labels", USUAL_LABELS)
def test_usual_classes_are_not_warned_of(labels: str) -> None:
    assert label_warnings(counted(labels)) == []


def test_tidy_labels_take_the_most_frequent_writing() -> None:
    tidied = tidy_labels({"1.0": 3, "1": 5, "tumor ": 2, "Tumor": 1, " a  b": 1})
    assert tidied == {"1.0": "1", "1": "1", "tumor ": "tumor", "Tumor": "tumor", " a  b": "a b"}


FIELDS = {
    "NA": ("NA,P1,P2", "--missing 'NA'"),
    "0 for none": ("0,12,13,14", "'0' (7 patches) is taken for one patient"),
    "0.0 for none": ("0.0,12.0,13.0", "is taken for one patient"),
    "999 for none": ("999,12,13,14", "'999' (7 patches) is taken for one patient"),
    "case": ("P1,p1,P2", "1 names of patients are written in several ways ('P1' (7), 'p1' (7))"),
    "floats": ("1,1.0,2,2.0", "2 names of patients are written in several ways"),
    "zeros in front": ("007,7,8", "written in several ways"),
    "separators": ("P-1,P_1", "written in several ways"),
    "suffix": ("S1.svs,S1,S2", "written in several ways"),
    "exponent": ("1.2E+11,100000", "a spreadsheet had rounded"),
}
USUAL_NAMES = (
    "0,1,2,3",
    "998,999,1000",
    "1.0,2.0,3.0",
    "001,002,010",
    "P1,P2,P-12",
    "TCGA-A6-2671,TCGA-A6-2672",
    "14-22549AB,14-22549CD",
    "S1.svs,S2.svs",
    "1e5,2e5",
    "0",
)


@pytest.mark.parametrize("kind", FIELDS)
def test_names_that_may_be_meant_otherwise(kind: str) -> None:
    names, expected = FIELDS[kind]
    (warning,) = name_warnings({"patient": counted(names)})
    assert expected in warning


@pytest.mark.parametrize("names", USUAL_NAMES)
def test_usual_names_are_not_warned_of(names: str) -> None:
    assert name_warnings({"patient": counted(names)}) == []


@pytest.mark.parametrize(
    ("mpp", "expected"),
    [
        ({40.0: 5}, "mpp is 40 for 5 patches: expected microns per pixel"),
        ({20.0: 5}, "0.5 at 20x"),
        ({250.0: 5}, "expected microns per pixel"),
        ({0.00025: 5}, "expected microns per pixel"),
        ({0.25: 5, None: 2}, "2 of 7 patches have no mpp"),
        ({0.25: 5, 0.5: 2}, "0.25 (5 patches), 0.5 (2 patches)"),
    ],
)
def test_mpp_that_may_be_meant_otherwise(mpp: dict[float | None, int], expected: str) -> None:
    (warning,) = mpp_warnings(mpp)
    assert expected in warning


@pytest.mark.parametrize(
    "mpp", [{0.25: 5}, {0.2456: 5, 0.252: 3}, {4.0: 2}, {0.499: 1, 0.55: 1}, {None: 3}]
)
def test_usual_mpp_are_not_warned_of(mpp: dict[float | None, int]) -> None:
    assert mpp_warnings(mpp) == []
