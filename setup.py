"""What pyproject.toml cannot say: rooms found by pattern, and what code reads of data/ inside."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["calib_utils", "calib_utils.*"]), "calib_utils.data"],
    package_dir={"calib_utils.data": "data"},
    package_data={
        "calib_utils.data": [
            *("panel/*.csv", "panel/*.json", "published/*.csv"),
            *("tasks/*.json", "tasks/*.txt", "tasks/gazetteer/*.csv", "tasks/forms/*"),
            *("tasks/lists/*.csv", "tasks/lists/*.json"),
        ]
    },
)
