"""Packaging. Requirements here are loose and true; exact, tested versions live in fate_llm_ext/constraints/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "fate_llm_ext/__init__.py").read_text(encoding="utf-8"))[1]

# pyfate is not in this list, though nothing runs without it: FATE loads plug-ins with pkg_resources, which
# refuses a plug-in as soon as any requirement of its requirements is not met to the letter, and pyfate pins
# old releases of everything (safetensors 0.4.1, ...). It is in the extra `fate`.
REQUIRES = [
    "torch>=2.1",
    "transformers>=4.37.2,<6",
    "accelerate>=0.27.2",
    "peft>=0.10",
    "tokenizers>=0.15",
    "safetensors>=0.4.1",
    "pyarrow>=14,<26",  # 26 needs numpy 2
    "numpy<2",  # numpy 2 breaks FATE messages that carry data frames
    "pandas<3",  # so does pandas 3
    "pydantic>=1.10.12,<2",  # fate.components is written for pydantic 1
    "setuptools<82",  # FATE finds plug-ins through pkg_resources, which 82 dropped
    "click>=8.0",
    "rich>=13.0",
    "jinja2>=3.0",
    "pyyaml>=6.0",
    "rapidfuzz>=3.0",
    "requests>=2.25",
    "scikit-learn>=1.0",
    "threadpoolctl>=2.0",
    "packaging>=23.0",
    "typing-extensions>=4.0",
]

EXTRAS = {
    "fate": ["pyfate==2.2.0"],
    "privacy": ["opacus>=1.5", "dp-accounting>=0.4.3", "scipy>=1.9"],
    "fate-llm": ["fate-llm==2.2.0"],
    "client": ["fate-client==2.2.0"],
    "notebook": ["fate-client==2.2.0", "ipykernel>=6.20", "nbclient>=0.8"],
    "dev": ["pytest>=8", "hypothesis>=6", "ruff>=0.6", "mypy>=1.10", "types-PyYAML"],
}

setup(
    name="fate-llm-ext",
    version=VERSION,
    description="Federated language-model algorithms as FATE 2.2 components",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.9,<3.12",
    packages=find_packages(include=["fate_llm_ext", "fate_llm_ext.*"]),
    package_data={
        "fate_llm_ext": ["py.typed", "constraints/*.txt", "**/*.yaml", "**/*.json", "**/*.html", "**/*.jinja"]
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["fate-llm-ext = fate_llm_ext.cli.main:main"],
        "fate.ext.component_desc": [
            "dpkd = fate_llm_ext.components.dpkd:dpkd",
            "fdkt = fate_llm_ext.components.fdkt:fdkt",
            "fedcot = fate_llm_ext.components.fedcot:fedcot",
            "fedmkt = fate_llm_ext.components.fedmkt:fedmkt",
            "site_check = fate_llm_ext.components.site_check:site_check",
            "text_evaluation = fate_llm_ext.components.text_evaluation:text_evaluation",
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    keywords="federated-learning language-models FATE knowledge-distillation",
)
