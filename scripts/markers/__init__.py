"""How the shipped model of QR codes and ArUco markers was made: scenes, training, and a data set to score it on."""
